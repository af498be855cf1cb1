# `make demo` and `make test` need Python 3.11 or newer and nothing else: what is missing is put into .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DEMO := runs/demo

.PHONY: install demo test long lint types bench docs clean

install: $(STAMP)

# pyproject.toml and constraints.txt decide what is installed
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $(PYTHON) is older (make PYTHON=python3.12 ...)"; exit 1; }
	@test -x $(BIN)/python || { echo "== making .venv"; $(PYTHON) -m venv .venv; }
	@echo "== installing into .venv (the first time this downloads torch)"
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

# From the start every time, but for the crafted images, which are kept in cache/.
demo: $(STAMP)
	@rm -rf $(DEMO)
	@echo "== 1/3 a classifier of handwritten digits, to be attacked"
	$(BIN)/lightning fit --config configs/digits/victims/small_cnn.yaml --run_dir $(DEMO)/victim
	@echo "== 2/3 REDRL: name the attack and recover the clean image"
	$(BIN)/lightning fit --config configs/digits/redrl.yaml --run_dir $(DEMO)/redrl \
		--data.victims.small_cnn=$(DEMO)/victim/checkpoints/best.ckpt
	@echo "== 3/3 on digits that neither has seen"
	$(BIN)/lightning test --config $(DEMO)/redrl/config.yaml --ckpt_path best
	@echo "== figures are in $(DEMO)/redrl/figures, tables in $(DEMO)/redrl/results.csv and results.json"

# two at a time, one thread each: more threads than cores take many times as long
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

# what `make test` leaves out: notebooks, 200 batches of everything, clusters of two processes, ...
long: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m long

lint: $(STAMP)
	$(BIN)/ruff check lit_adv callbacks tests benchmarks examples
	$(BIN)/ruff format --check lit_adv callbacks tests benchmarks examples
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy -p lit_adv -p callbacks

# Attacks against other libraries', about an hour on one core; make bench BENCH="--images 8 --attacks PGD" is quicker.
# Those libraries come without what they ask for: one wants a requests of 2020, one a plotting server.
bench: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps -r benchmarks/requirements.txt
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks --out docs $(BENCH)

docs: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find lit_adv callbacks configs tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
