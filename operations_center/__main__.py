from operations_center.cli import main

main()
