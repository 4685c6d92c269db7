"""The job and the workers of b_recovery.py, one queue for each process (chosen by B_PEER, B_VARIANT, B_URL).

    python b_jobs.py prepare | enqueue | worker

The job spawns `sleep 300` (the executor), appends "worker-pid executor-pid" to B_LOG and waits for it.
"""

import os
import subprocess
import sys
import warnings
from typing import Any

warnings.simplefilter("ignore")

PEER, FAST = os.environ["B_PEER"], os.environ["B_VARIANT"] == "best"
URL, LOG = os.environ["B_URL"], os.environ["B_LOG"]


def hold(*_: Any, **__: Any) -> None:
    """The job."""
    executor = subprocess.Popen(["sleep", "300"])
    with open(LOG, "a") as log:
        log.write(f"{os.getpid()} {executor.pid}\n")
    executor.wait()


def prepare() -> None:
    """Most need nothing."""


if PEER == "huey":
    from huey import SqliteHuey

    queue = SqliteHuey("bench", filename=URL)
    enqueue = queue.task()(hold)

    def worker() -> None:
        """Consume until killed."""
        queue.create_consumer().run()

elif PEER == "procrastinate":
    import procrastinate

    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=URL))
    task = app.task(name="hold")(hold)
    STALLED_S = 5
    if FAST:  # Nothing requeues by default: the user has to write this periodic task.

        @app.periodic(cron="* * * * * */1")
        @app.task(queueing_lock="retry_stalled", pass_context=True)
        async def retry_stalled(context: Any, timestamp: int) -> None:
            """As the documentation shows it."""
            for job in await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=STALLED_S):
                await app.job_manager.retry_job(job)

    def prepare() -> None:
        """Make the tables."""
        with app.open():
            app.schema_manager.apply_schema()

    def enqueue() -> None:
        """One job."""
        with app.open():
            task.defer()

    def worker() -> None:
        """Consume until killed."""
        fast = {
            "update_heartbeat_interval": 1,
            "stalled_worker_timeout": STALLED_S,
            "fetch_job_polling_interval": 1,
        }
        app.run_worker(**(fast if FAST else {}))

elif PEER == "rq":
    import redis
    import rq

    connection = redis.Redis.from_url(URL)

    def enqueue() -> None:
        """One job."""
        rq.Queue("bench", connection=connection).enqueue("b_jobs.hold", retry=rq.Retry(max=3) if FAST else None)

    def worker() -> None:
        """Consume until killed."""
        fast = {"maintenance_interval": 1, "job_monitoring_interval": 1, "worker_ttl": 16}
        rq.Worker(["bench"], connection=connection, **(fast if FAST else {})).work()

elif PEER == "celery":
    import celery

    app = celery.Celery("b_jobs", broker=URL)
    app.conf.update(task_acks_late=True, broker_connection_retry_on_startup=True)
    if FAST:
        app.conf.update(
            task_reject_on_worker_lost=True,
            broker_transport_options={
                "visibility_timeout": 10,
                "unacked_restore_interval": 1,
                "unacked_restore_throttle": 1,
            },
        )
    enqueue = app.task(name="hold")(hold).delay

    def worker() -> None:
        """Consume until killed."""
        app.worker_main(["worker", "-c", "1", "-n", f"w{os.getpid()}@h"])

elif PEER == "dramatiq":
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker

    dramatiq.set_broker(
        RedisBroker(url=URL, **({"heartbeat_timeout": 5000, "maintenance_chance": 10**6} if FAST else {}))
    )
    enqueue = dramatiq.actor(actor_name="hold")(hold).send

    def worker() -> None:
        """Consume until killed."""
        os.execv(sys.executable, [sys.executable, "-m", "dramatiq", "b_jobs", "-p", "1", "-t", "1"])


if __name__ == "__main__":
    {"prepare": prepare, "enqueue": enqueue, "worker": worker}[sys.argv[1]]()
