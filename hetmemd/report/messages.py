"""The kinds of journal records, by fixed MESSAGE_IDs: `journalctl MESSAGE_ID=...` finds them in every release.

`systemd/hetmemd.catalog` explains each; a number is never used for another meaning.
"""

from __future__ import annotations

STARTED = "6b631f85d389471ab520cbf831fa488c"
STOPPED = "541a3a28a4aa451fb0e2854c63b9d16e"
RELOADED = "17bd82f7d8394908a6af97b1a4c1aea4"
SETTINGS_REFUSED = "4a8cd0dc06294e4c9e5fb1ede96a412c"
FILE_IN_FORCE = "7e312cde78de45e6bc09d49771e18c43"
FILE_REJECTED = "84e5f788846d441ca7a67f598bfda37c"
APPLICATION = "fc9f7362f6794052a1de9fc091644c11"
APPLICATION_FAILED = "198b9d31acb74c1781ad0234da773fa6"
REGIONS_BOUND = "0f3789f814c94d7c99aa638a167f8d29"
PAGES_MOVED = "17abc9fd799041509773f915b76e8da5"
OBSERVING = "ff87175d91e749c99c77bc55ad7580bd"
LIMITATION = "a1ef39ef6c2a42e298673262a824cc03"
KEPT = "52f1b0a6f6a940c7a2dfd2a8a4a35a90"
GIVEN_BACK = "c0e6d8b1c1f74c59b0c7a9c3f5e2d871"
HELD = "b6b0f41d2f9a4a2f9d6b2f5d6f0c7a11"
RELEASED = "3d6a4c9ee0b74c0ea1b9a7f0c2d85e24"
EVENTS_LOST = "180d12c9d1d045948b1d6408fe970f3a"
