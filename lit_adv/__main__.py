"""`python -m lit_adv` is the `lightning` command."""

from lit_adv.cli import main

if __name__ == "__main__":
    main()
