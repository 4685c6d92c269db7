"""One way to take a slot and give it back for each peer of c_admission.py.

``setup`` is called once, ``open`` in each process; ``cycle`` is True when a slot was taken and given back. Libraries
are imported where they are used: they are installed under the peers' interpreter only.
"""

# ruff: noqa: PLC0415

import asyncio
import fcntl
import logging
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

from benchmarks.admission import OurLedger
from benchmarks.peers import HOME
from benchmarks.peers.common import PG_DSN, REDIS_PORT
from operations_center.clock import SystemClock
from operations_center.store import Store

CAP = 64
DIRECTORY = HOME / "run_c"


def noop() -> None:
    """The job."""


class Peer:
    """Each sets up, opens and closes what it needs."""

    def setup(self) -> None:
        pass

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def cycle(self) -> bool:
        raise NotImplementedError


class OperationsCenter(Peer):
    """Admit, settle, close: three transactions, each with its event."""

    def setup(self) -> None:
        Store(DIRECTORY / "ledger.db", SystemClock()).close()

    def open(self) -> None:
        self.ledger, self.number = OurLedger(DIRECTORY, CAP), 0

    def cycle(self) -> bool:
        self.number += 1
        return self.ledger.cycle(f"{os.getpid()}-{self.number}")


class RawSqlite(Peer):
    """What the embedded store gives at best: begin immediate; count; insert; commit; update; commit."""

    def __init__(self, synchronous: str) -> None:
        self.synchronous, self.path = synchronous, DIRECTORY / "raw.db"

    def open(self) -> None:
        self.database: Any = sqlite3.connect(self.path, isolation_level=None, timeout=30)
        self.database.execute(f"pragma synchronous={self.synchronous}")

    def setup(self) -> None:
        database = sqlite3.connect(self.path)
        database.execute("pragma journal_mode=wal")
        columns = "id integer primary key, backend text, state text, owner int, t0 real, t1 real"
        database.execute(f"create table slots({columns})")
        database.execute("create index open_slots on slots(backend) where state='open'")
        database.close()

    def begin(self) -> None:
        self.database.execute("begin immediate")

    def end(self, how: str = "commit") -> None:
        self.database.execute(how)

    def cycle(self) -> bool:
        execute = self.database.execute
        self.begin()
        (held,) = execute("select count(*) from slots where backend='b' and state='open'").fetchone()
        if held >= CAP:
            self.end("rollback")
            return False
        take = "insert into slots(backend, state, owner, t0) values('b', 'open', ?, ?)"
        slot = execute(take, (os.getpid(), time.time())).lastrowid
        self.end()
        self.begin()
        execute("update slots set state='finished', t1=? where id=?", (time.time(), slot))
        self.end()
        return True


class RawSqliteFlock(RawSqlite):
    """The same behind flock() on a side file: who waits sleeps in the kernel and is woken at once.

    SQLite's busy handler polls with sleeps of up to 100 ms, and starves.
    """

    def open(self) -> None:
        super().open()
        self.lock = os.open(Path(f"{self.path}.lock"), os.O_CREAT | os.O_RDWR)

    def begin(self) -> None:
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        super().begin()

    def end(self, how: str = "commit") -> None:
        super().end(how)
        fcntl.flock(self.lock, fcntl.LOCK_UN)


class Huey(Peer):
    """SqliteHuey as shipped (WAL, fsync=None: SQLite's synchronous=FULL): enqueue, dequeue, execute."""

    def open(self) -> None:
        from huey import SqliteHuey

        self.huey = SqliteHuey("bench", filename=str(DIRECTORY / "huey.db"), timeout=30)
        self.noop = self.huey.task()(noop)

    setup = open

    def cycle(self) -> bool:
        self.noop()
        task = self.huey.dequeue()
        if task is None:
            return False
        self.huey.execute(task)
        return True


class Litequeue(Peer):
    """WAL and synchronous=NORMAL, set by the library: put, pop, done."""

    def open(self) -> None:
        from litequeue import LiteQueue

        self.queue = LiteQueue(str(DIRECTORY / "lite.db"), timeout=30)

    setup = open

    def cycle(self) -> bool:
        self.queue.put("x")
        message = self.queue.pop()
        if message is None:
            return False
        self.queue.done(message.message_id)
        return True


class PersistQueue(Peer):
    """SQLiteAckQueue as shipped (multithreading=True): put, get, ack."""

    def open(self) -> None:
        import persistqueue

        self.empty = persistqueue.Empty
        self.queue = persistqueue.SQLiteAckQueue(str(DIRECTORY / "pq"), multithreading=True, timeout=30.0)

    setup = open

    def cycle(self) -> bool:
        self.queue.put("x")
        try:
            item = self.queue.get(block=False, raw=True)
        except self.empty:
            return False
        self.queue.ack(id=item["pqid"])
        return True


class RawPostgres(Peer):
    """What PostgreSQL gives at best: advisory lock; insert … select with the cap; commit; update; commit."""

    def __init__(self, synchronous_commit: str = "on") -> None:
        self.synchronous_commit = synchronous_commit

    def open(self) -> None:
        import psycopg

        self.database = psycopg.connect(PG_DSN, autocommit=True)
        self.database.execute(f"set synchronous_commit={self.synchronous_commit}")

    def setup(self) -> None:
        self.open()
        execute = self.database.execute
        execute("drop table if exists slots")
        times = "t0 timestamptz default now(), t1 timestamptz"
        execute(f"create table slots(id bigserial primary key, backend text, state text, owner int, {times})")
        execute("create index on slots(backend) where state='open'")
        self.database.close()

    def cycle(self) -> bool:
        with self.database.transaction():
            self.database.execute("select pg_advisory_xact_lock(1)")
            row = self.database.execute(
                "insert into slots(backend, state, owner) select 'b', 'open', %s where "
                "(select count(*) from slots where backend='b' and state='open') < %s returning id",
                (os.getpid(), CAP),
            ).fetchone()
        if row is None:
            return False
        self.database.execute("update slots set state='finished', t1=now() where id=%s", row)
        return True

    def close(self) -> None:
        self.database.close()


class Procrastinate(Peer):
    """Its own SQL through its job manager, without a worker's loop: defer, fetch_job, finish_job."""

    def _app(self) -> Any:
        import procrastinate

        connector = procrastinate.PsycopgConnector(conninfo=PG_DSN, min_size=1, max_size=2)
        app = procrastinate.App(connector=connector)
        self.task = app.task(name="noop")(noop)
        return app

    def setup(self) -> None:
        import psycopg

        with psycopg.connect(PG_DSN, autocommit=True) as connection:
            connection.execute("drop schema public cascade; create schema public")

        async def apply() -> None:
            async with self._app().open_async() as app:
                await app.schema_manager.apply_schema_async()

        asyncio.run(apply())

    def open(self) -> None:
        self.run = asyncio.new_event_loop().run_until_complete
        self.app = self._app()
        self.run(self.app.open_async().__aenter__())
        self.worker = self.run(self.app.job_manager.register_worker())

    def cycle(self) -> bool:
        return self.run(self._cycle())

    async def _cycle(self) -> bool:
        from procrastinate.jobs import Status

        manager = self.app.job_manager
        await self.task.defer_async()
        job = await manager.fetch_job(None, self.worker)
        if job is None:
            return False
        await manager.finish_job(job, Status.SUCCEEDED, delete_job=False)
        return True

    def close(self) -> None:
        self.run(self.app.close_async())


class RedisLua(Peer):
    """A counting semaphore in redis: SCARD below the cap, then SADD; given back by SREM."""

    LUA = (
        "if redis.call('scard',KEYS[1]) < tonumber(ARGV[1]) then return redis.call('sadd',KEYS[1],ARGV[2]) end return 0"
    )

    def open(self) -> None:
        import redis

        self.redis = redis.Redis(port=REDIS_PORT)
        self.acquire = self.redis.register_script(self.LUA)
        self.number = 0

    def setup(self) -> None:
        self.open()
        self.redis.flushall()

    def cycle(self) -> bool:
        self.number += 1
        me = f"{os.getpid()}:{self.number}"
        if not self.acquire(keys=["slots:b"], args=[CAP, me]):
            return False
        self.redis.srem("slots:b", me)
        return True


class Rq(Peer):
    """Enqueue, dequeue and execute in the same process (SimpleWorker, no fork)."""

    def open(self) -> None:
        import redis
        import rq

        logging.getLogger("rq").setLevel(logging.ERROR)
        connection = redis.Redis(port=REDIS_PORT)
        self.queue = rq.Queue("bench", connection=connection)
        self.worker = rq.SimpleWorker([self.queue], connection=connection)
        self.worker.register_birth()

    def setup(self) -> None:
        import redis

        redis.Redis(port=REDIS_PORT).flushall()

    def cycle(self) -> bool:
        self.queue.enqueue("benchmarks.peers.admissions.noop", result_ttl=0)
        found = self.worker.dequeue_job_and_maintain_ttl(None)
        if found is None:
            return False
        self.worker.execute_job(*found)
        return True
