"""Servers under load from their own tools: every answer right, every sum at the end as it should be."""

from __future__ import annotations

import hashlib
import re
import signal
import urllib.request
from pathlib import Path

import pytest

from tests.machine.daemon import eventually, free_address
from tests.machine.programs import NOBODY
from tests.machine.real_program import Pressure
from tests.machine.remote_target import Target

pytestmark = pytest.mark.root

POSTGRES = "/usr/lib/postgresql/15/bin"


def ends(server: Target, how: signal.Signals, status: int = 0) -> None:
    server.process.send_signal(how)
    assert server.process.wait(60) == status


class Postgres:
    """A database with checksums on its pages, and pgbench's tables."""

    def __init__(self, pressure: Pressure) -> None:
        self._pressure = pressure
        self.transactions = 0
        self.tool("initdb", "-D", "data", "--no-sync", "--data-checksums", "--auth=trust", "--username=nobody")

    def tool(self, name: str, *arguments: str) -> str:
        return self._pressure.tool([f"{POSTGRES}/{name}", *arguments], NOBODY)

    def query(self, text: str) -> str:
        return self.tool("psql", "-h", "/mnt", "-XAtqv", "ON_ERROR_STOP=1", "-c", text, "postgres").strip()

    def is_up(self) -> bool:
        return (self._pressure.folder / ".s.PGSQL.5432").exists() and (
            "ready" in (self._pressure.folder / "data/postmaster.pid").read_text()
        )

    def load(self) -> None:
        """Transactions that move money, and a query whose answer does not change, by parallel workers."""
        told = self.tool("pgbench", "-h", "/mnt", "-n", "-c", "6", "-j", "2", "-t", "60", "postgres")
        (done,) = re.findall(r"actually processed: (\d+)/360", told)
        assert re.findall(r"failed transactions: (\d+)", told) == ["0"]
        self.transactions += int(done)
        assert self.query(f"set max_parallel_workers_per_gather = 2; {CONSTANT}") == self.constant

    def prepare(self) -> None:
        self.tool("pgbench", "-h", "/mnt", "-q", "-i", "-s", "1", "postgres")
        self.query("create table fixed as select i, md5(i::text) as text from generate_series(1, 100000) as i")
        self.query("create extension amcheck")
        self.constant = self.query(CONSTANT)

    def is_consistent(self) -> None:
        sums = self.query(
            "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers),"
            " (select sum(bbalance) from pgbench_branches), (select sum(delta) from pgbench_history)"
        ).split("|")
        assert len(set(sums)) == 1, sums
        assert self.query("select count(*) from pgbench_history") == str(self.transactions)
        assert self.query("select bt_index_check('pgbench_accounts_pkey', true)") == ""


CONSTANT = "select count(*), sum(hashtext(text)::bigint), min(text), max(text) from fixed"


def test_postgresql(pressure: Pressure) -> None:
    database = Postgres(pressure)
    options = ["listen_addresses=", "unix_socket_directories=/mnt", "fsync=off", "jit=off", "shared_buffers=32MB"]
    options += ["parallel_setup_cost=0", "parallel_tuple_cost=0", "min_parallel_table_scan_size=0"]
    settings = [word for option in options for word in ("-c", option)]
    with pressure.start([f"{POSTGRES}/postgres", "-D", "data", *settings], NOBODY) as server:
        eventually("it is up", database.is_up)
        database.prepare()
        pressure.during(database.load)
        database.is_consistent()
        ends(server, signal.SIGINT)
    assert database.transactions > 0
    assert "Bad checksums:  0" in database.tool("pg_checksums", "--check", "-D", "data")


class Redis:
    def __init__(self, pressure: Pressure) -> None:
        self._pressure = pressure
        self.rounds = 0

    def cli(self, *words: str) -> str:
        return self._pressure.tool(["/usr/bin/redis-cli", "-e", "-s", "/mnt/redis", *words]).strip()

    def is_up(self) -> bool:
        return (self._pressure.folder / "redis").exists() and self.cli("ping") == "PONG"

    def load(self) -> None:
        """What writes writes the same again, but for the counter; and a child that writes all of it to a file."""
        requests = 5000
        options = [
            "-n",
            str(requests),
            "-c",
            "20",
            "-d",
            "512",
            "-P",
            "4",
            "-t",
            "ping,set,get,incr,hset,mset,lrange_100",
        ]
        told = self._pressure.tool(["/usr/bin/redis-benchmark", "-s", "/mnt/redis", "-q", "--csv", *options])
        assert "rror" not in told
        self.cli("bgsave", "schedule")
        self.rounds += 1
        assert self.cli("get", "counter:__rand_int__") == str(self.rounds * requests)

    def digest(self) -> str:
        """Of all that is there, but for the counter and the list that grows with each load."""
        counter = self.cli("get", "counter:__rand_int__")
        self.cli("del", "counter:__rand_int__", "mylist")
        digest = self.cli("debug", "digest")
        self.cli("set", "counter:__rand_int__", counter)
        return digest


def test_redis(pressure: Pressure) -> None:
    redis = Redis(pressure)
    options = ["--port", "0", "--unixsocket", "/mnt/redis", "--enable-debug-command", "yes", "--save", ""]
    options += ["--io-threads", "2", "--io-threads-do-reads", "yes", "--dir", "/mnt", "--rdbchecksum", "yes"]
    with pressure.start(["/usr/bin/redis-server", *options]) as server:
        eventually("it is up", redis.is_up)
        redis.cli("debug", "populate", "20000", "key", "200")
        redis.load()
        digest = redis.digest()
        pressure.during(redis.load)
        assert redis.digest() == digest
        assert redis.rounds > 1
        eventually("it has saved", lambda: "rdb_bgsave_in_progress:0" in redis.cli("info", "persistence"))
        assert "rdb_last_bgsave_status:ok" in redis.cli("info", "persistence")
        pressure.tool(["/usr/bin/redis-check-rdb", "dump.rdb"])
        ends(server, signal.SIGTERM)


NGINX = """
daemon off;
worker_processes 2;
pid /mnt/pid;
error_log /mnt/errors info;
events { worker_connections 256; }
http {
    access_log off;
    client_body_temp_path /mnt/body; proxy_temp_path /mnt/proxy; fastcgi_temp_path /mnt/fastcgi;
    uwsgi_temp_path /mnt/uwsgi; scgi_temp_path /mnt/scgi;
    server {
        listen unix:/mnt/unused;
        listen 127.0.0.1:PORT;
        root /mnt/www;
        location / { sendfile on; }
        location /threads/ { sendfile off; aio threads; output_buffers 2 64k; alias /mnt/www/; }
    }
}
"""
WRK = """
local file = io.open("/mnt/www/small"); local wanted = file:read("*a"); file:close()
local threads = {}
function setup(thread) table.insert(threads, thread) end
wrong = 0
function response(status, headers, body) if status ~= 200 or body ~= wanted then wrong = wrong + 1 end end
function done(summary, latency, requests)
    local sum = 0
    for _, thread in ipairs(threads) do sum = sum + thread:get("wrong") end
    local e = summary.errors
    print(string.format("requests %d wrong %d errors %d", summary.requests, sum,
        e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def content(size: int) -> bytes:
    return b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(size // 32))


class Nginx:
    def __init__(self, pressure: Pressure) -> None:
        self._pressure = pressure
        self.address = free_address()
        self.requests = 0
        self.sums = {}
        (pressure.folder / "www").mkdir()
        for name, size in (("small", 4096), ("large", 8 << 20)):
            (pressure.folder / "www" / name).write_bytes(content(size))
            self.sums[name] = hashlib.md5(content(size)).hexdigest()
        (pressure.folder / "conf").write_text(NGINX.replace("127.0.0.1:PORT", self.address))
        (pressure.folder / "check.lua").write_text(WRK)

    def is_up(self) -> bool:
        return (self._pressure.folder / "pid").exists()

    def body(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://{self.address}/{path}", timeout=60) as answer:
            body: bytes = answer.read()
        return body

    def load(self) -> None:
        """Many small bodies, compared; and large ones, which are sent in parts, by their sums."""
        for path in ("", "threads/"):
            words = ["/usr/bin/wrk", "-t", "2", "-c", "16", "-d", "1s", "--timeout", "30s", "-s", "check.lua"]
            told = self._pressure.tool([*words, f"http://{self.address}/{path}small"])
            ((requests, wrong, errors),) = re.findall(r"requests (\d+) wrong (\d+) errors (\d+)", told)
            assert (wrong, errors) == ("0", "0"), told
            self.requests += int(requests)
            for name, wanted in self.sums.items():
                assert hashlib.md5(self.body(path + name)).hexdigest() == wanted


def test_nginx(pressure: Pressure) -> None:
    nginx = Nginx(pressure)
    with pressure.start(["/usr/sbin/nginx", "-c", "/mnt/conf", "-e", "/mnt/errors"], NOBODY) as server:
        eventually("it is up", nginx.is_up)
        pressure.during(nginx.load)
        ends(server, signal.SIGQUIT)
    assert nginx.requests > 0
    errors: str = Path(pressure.folder / "errors").read_text()
    assert not re.search(r"\[(crit|alert|emerg|error)\]|exited on signal", errors), errors
