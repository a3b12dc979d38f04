"""`python -m capvisor` is the `capvisor` command."""

from capvisor.cli.main import main

if __name__ == "__main__":
    main()
