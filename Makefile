# make run    set up, then distil the embedded dataset: experts, distilling, evaluation, report
# make test   set up, then the tests       make lint   ruff and mypy       make bench   speed and memory
# make docs   the documentation, as pages in build/site
# make fuzz   100,000 damaged or odd inputs (CASES)        make soak   200 kills, 2000 iterations
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
CASES  ?= 100000

.PHONY: run test lint docs bench fuzz soak clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/documented: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

run: $(VENV)/installed
	$(BIN)/potstill run $(ARGS)

test: $(VENV)/installed
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/installed
	$(BIN)/ruff check potstill tests bench recipes docs examples setup.py
	$(BIN)/ruff format --check potstill tests bench recipes docs examples setup.py
	$(BIN)/mypy

docs: $(VENV)/documented
	$(BIN)/mkdocs build --strict

bench: $(VENV)/installed
	$(BIN)/python -m bench $(ARGS)

fuzz: $(VENV)/installed
	POTSTILL_FUZZ=$(CASES) $(BIN)/python -m pytest tests/fuzz -n 0 $(ARGS)

soak: $(VENV)/installed
	$(BIN)/python -m bench.soak $(ARGS)

clean:
	rm -rf $(VENV) runs
