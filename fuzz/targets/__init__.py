"""Every reader of what somebody else may write, by name."""

from collections.abc import Callable

from fuzz.campaign import Target
from fuzz.sandbox import Sandbox
from fuzz.targets.answers import AnswersOfAProvider
from fuzz.targets.backup import CraftedBackup
from fuzz.targets.commit import ListedCommit
from fuzz.targets.configuration import SpoiledConfiguration
from fuzz.targets.heartbeat import PlantedHeartbeat
from fuzz.targets.run_directory import RunDirectory
from fuzz.targets.state_directory import PlantedStateDirectory
from fuzz.targets.terminal import HostileText
from fuzz.targets.wake import PlantedWakeUp

TARGETS: dict[str, Callable[[Sandbox], Target]] = {
    "run directory": RunDirectory,
    "heartbeat": PlantedHeartbeat,
    "wake-up FIFO": PlantedWakeUp,
    "state directory": PlantedStateDirectory,
    "backup": CraftedBackup,
    "commit": ListedCommit,
    "answers": AnswersOfAProvider,
    "configuration": SpoiledConfiguration,
    "terminal": HostileText,
}
