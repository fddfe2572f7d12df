"""`python -m moecli` is `moecli`."""

from moecli.cli.app import main

if __name__ == "__main__":
    main()
