# `make demo` and `make test` set up everything they need by themselves; VENV= lets several work trees share one
# environment.
VENV ?= .venv
PYTHON ?= python3
BIN := $(abspath $(VENV))/bin
INSTALLED := $(VENV)/.nnunet-synthtumour
DEMO ?= demo
PYTEST_ARGS ?= -n 2
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint types bench install clean

install: $(INSTALLED)

# An editable install, so that a change is in force at once; what a wheel would put into nnU-Net's folders is linked.
$(INSTALLED): pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -c "from nnunet_synthtumour.doctor import link; print('\n'.join(link()))"
	touch $(INSTALLED)

demo: $(INSTALLED)
	PATH="$(BIN):$$PATH" OMP_NUM_THREADS=2 bash docs/demo.sh $(DEMO)

test: $(INSTALLED)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not follow the import hook of an editable install, so it gets the installed layout as a tree of links.
types: $(INSTALLED)
	rm -rf build/typed && mkdir -p build/typed/nnunet_synthtumour
	ln -s $(CURDIR)/nnunet_synthtumour/* build/typed/nnunet_synthtumour/
	ln -s $(addprefix $(CURDIR)/,trainers planners registration) build/typed/nnunet_synthtumour/
	MYPYPATH=build/typed $(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python benchmarks/synthesis.py
	$(BIN)/python benchmarks/mixing.py
	$(BIN)/python benchmarks/lncc.py

clean:
	rm -rf build dist *.egg-info
