# make demo   trains a network to collapse and shows it
# make test   runs the tests
# Both start from a bare machine: they need a Python (3.11 or newer, with venv) and nothing else.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
ARGS   ?=

# A stamp is as new as the last finished install: a second call does not even start pip, an
# interrupted install is taken up again, a changed pyproject.toml is installed again.
INSTALLED := $(VENV)/.installed
PIP       := $(PY) -m pip install --disable-pip-version-check
# One process per core; 8 hold about 8 GB. A file's tests stay together: they share fits.
# ARGS="-n 0" runs all in one process, for a debugger or one GPU.
# In the order of the folders: files of few tests, which come last otherwise, are those that take long.
PYTEST    := $(PY) -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
say        = @printf '\n==> %s\n' $(1)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-all test-lowest check check-all install format format-check lint types layers \
        wheel notebooks docs clean

help:  ## Show this list
	@echo 'make TARGET   (PYTHON=/path/to/python3 for another interpreter)'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED)  ## Train a small network to collapse; ARGS="--trainer.max_epochs 50" overrides
	@$(VENV)/bin/ncmonitor fit digits $(ARGS)
	@echo '  (wandb and ncmonitor are in $(VENV)/bin: ". $(VENV)/bin/activate" puts them on your path)'

test: $(INSTALLED)  ## Run the tests, without the slow ones; ARGS goes to pytest
	$(call say,'tests')
	@$(PYTEST) -m 'not slow' $(ARGS)

test-all: $(INSTALLED)  ## Run every test
	$(call say,'tests')
	@$(PYTEST) $(ARGS)

check: format-check lint types wheel test  ## Run what a change has to pass (what CI runs)

check-all: format-check lint types wheel test-all  ## The same with the slow tests, a third of the whole

install: $(INSTALLED)  ## Make .venv with the project (editable) and its tools

format: $(INSTALLED)  ## Format the code, and fix what can be fixed
	@$(PY) -m ruff check --fix-only --quiet .
	@$(PY) -m ruff format .

format-check: $(INSTALLED)
	$(call say,'format')
	@$(PY) -m ruff format --check .

lint: $(INSTALLED)  ## Check style and spelling
	$(call say,'lint')
	@$(PY) -m ruff check .
	@$(PY) -m codespell_lib

types: $(INSTALLED)  ## Check types, strictly
	$(call say,'types')
	@$(PY) -m mypy

layers: $(INSTALLED)  ## Check who imports whom, and the package list
	$(call say,'layers and packaging')
	@$(PY) -m pytest -q tests/test_layers.py tests/test_imports.py tests/test_packaging.py

wheel: $(INSTALLED)  ## Build sdist and wheel in dist/, and import the wheel from an empty folder
	$(call say,'wheel')
	@rm -rf build dist
	@$(PY) -m build --no-isolation . > $(VENV)/build.log 2>&1 || { cat $(VENV)/build.log; exit 1; }
	@$(PY) tests/support/check_wheel.py dist/*.whl

notebooks: $(INSTALLED)  ## Run every notebook as it was committed (a few minutes; the tests run them with small settings)
	$(call say,'notebooks')
	@$(PY) -m pytest -c /dev/null --rootdir . --nbmake --nbmake-timeout=600 notebooks $(ARGS)

docs: $(INSTALLED)  ## Build the docs site in site/; a warning is an error
	@$(PY) -m sphinx -q -W --keep-going -d $(VENV)/doctrees -b html docs site
	@echo 'open site/index.html'

test-lowest:  ## Run the tests with every dependency at its lowest version, in .venv-lowest
	@test -x .venv-lowest/bin/python || '$(PYTHON)' -m venv .venv-lowest
	@.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check uv
	@VIRTUAL_ENV=.venv-lowest .venv-lowest/bin/uv pip install --quiet --resolution lowest-direct -e '.[dev]'
	@# Old releases warn of one another; the tests of the newest ones look at warnings.
	@.venv-lowest/bin/python -m pytest -n auto --maxprocesses 8 --dist loadfile -o filterwarnings= $(ARGS)

clean:  ## Remove what was built; .venv and runs stay
	@rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
	@find . -name __pycache__ -not -path './$(VENV)/*' -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml
	@command -v '$(PYTHON)' >/dev/null || { \
	    echo 'error: there is no "$(PYTHON)". Install Python 3.11 or newer, or name one:'; \
	    echo '       make PYTHON=/path/to/python3 $(MAKECMDGOALS)'; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: ncmonitor needs Python 3.11 or newer, but $(PYTHON) is $$('$(PYTHON)' -V 2>&1)."; \
	    echo '       Name another one: make PYTHON=/path/to/python3 $(MAKECMDGOALS)'; exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo 'error: $(PYTHON) cannot make virtual environments: its venv module is missing.'; \
	    echo '       On Debian and Ubuntu: sudo apt install python3-venv'; exit 1; }
	@echo '==> Installing into $(VENV). The first time takes 2 to 10 minutes and 6.5 GB of disk:'
	@echo '    PyTorch with its CUDA libraries is several GB. Later calls install nothing.'
	@$(PY) -m pip --version >/dev/null 2>&1 || '$(PYTHON)' -m venv --clear $(VENV)
	@# compat: the clone is on the path, else a folder called ncmonitor beside a script would hide it.
	@$(PIP) --quiet --progress-bar on -e '.[dev]' --config-settings editable_mode=compat
	@touch $@
	@echo '==> Installed.'
