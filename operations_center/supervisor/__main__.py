"""``python -m operations_center.supervisor SOCKET``: a fork server with the code that is there now."""

from operations_center.supervisor.fork_server import main

main()
