"""All sources together: they are opened, acknowledged, and then deliver hints until they are closed."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from hetmemd.kernel.root import Root
from hetmemd.report.snapshot import SourceView
from hetmemd.watch.cgroups import CgroupSource
from hetmemd.watch.connector import ConnectorSource
from hetmemd.watch.files import FilesSource
from hetmemd.watch.mappings import MappingsSource
from hetmemd.watch.source import Deliver


class Watcher:
    """Eyes on the cgroup tree, the policy files, the processes, and where it is wanted on what they map.

    `deliver` is called on the loop, without any hint where only the state of a source is another. The order is that of
    the events as far as one cgroup or one pid goes; between sources there is none. What is missing (a right, a kernel
    feature, a library) stands in the note of its source and never raises: scans cover.
    """

    def __init__(self, root: Root, loop: asyncio.AbstractEventLoop, deliver: Deliver) -> None:
        self._cgroups = CgroupSource(root, loop, deliver)
        self._files = FilesSource(root, loop, deliver)
        self._connector = ConnectorSource(root, loop, deliver)
        self._mappings = MappingsSource(root, loop, deliver)

    async def start(self) -> None:
        """Open the sources. When this returns, whatever happens from now on is either hinted or noted as unseen.

        Scan after this, not before: what happened before it is not hinted.
        """
        self._files.start()
        self._cgroups.start()
        await self._connector.start()
        self._mappings.start()

    def close(self) -> None:
        for source in (self._mappings, self._connector, self._cgroups, self._files):
            source.close()

    def sources(self) -> tuple[SourceView, ...]:
        return (self._cgroups.view(), self._files.view(), self._connector.view(), self._mappings.view())

    def want_regions(self, pids: Collection[int]) -> None:
        """Of which processes `RegionsHint`s are wanted, from now on as the collection changes; at first of none."""
        self._mappings.want(pids)
