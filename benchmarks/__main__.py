"""``python -m benchmarks`` runs the attacks' benchmark."""

from benchmarks.attacks import main

main()
