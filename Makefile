# `make demo` and `make test` need Python 3.11+ (with venv) and make, and install the rest into .venv themselves.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-live test-lab test-others test-fast test-all explore coverage docs lint wheel floors clean

demo: $(INSTALLED)
	$(RUN)gwtf demo $(ARGS)

# Three parts at once: most of the time of the tests of real peers is waiting. They tell what they have seen at the end.
IN_LAB := tests/lab tests/monitor
IN_LIVE := tests/live
OTHERS := tests $(addprefix --ignore=,$(IN_LAB) $(IN_LIVE))

test: $(INSTALLED)
ifdef ARGS
	$(MAKE) lint
	$(RUN)python -m pytest $(ARGS)
else
	@$(MAKE) -j3 test-live test-lab test-others
endif

# By make and not by `&` of a shell, which would let the tests' processes ignore Ctrl+C.
test-live: PART := $(IN_LIVE)
test-lab: PART := $(IN_LAB)
test-live test-lab:
	@mkdir -p build
	@echo "tests of real peers run beside the others, into build/$@.log"
	@$(RUN)python -m pytest $(PART) > build/$@.log 2>&1; code=$$?; cat build/$@.log; exit $$code

test-others: lint
	$(RUN)python -m pytest $(OTHERS)

test-fast: $(INSTALLED)
	$(RUN)python -m pytest -m "not live and not netns and not slow" $(ARGS)

# Everything, the long lab runs and live stories included: about half an hour.
test-all: $(INSTALLED) lint
	$(RUN)python -m pytest -m "" $(ARGS)

# Property tests with fresh random seeds and many more examples. What it finds becomes an @example of the test.
explore: $(INSTALLED)
	HYPOTHESIS_PROFILE=explore $(RUN)python -m pytest tests/protocol tests/simulation -m "not slow" $(ARGS)

# Branch coverage of the protocol, by the tests that need no network.
coverage: $(INSTALLED)
	$(RUN)python -m pytest tests/protocol tests/simulation --cov=gwtf_p2p.protocol --cov-report=term-missing:skip-covered $(ARGS)

# The site, into build/site. Strict: a warning is an error. Nothing is fetched.
docs: $(INSTALLED)
	$(RUN)python docs/site_tools/gather.py build/pages
	$(RUN)sphinx-build -W --keep-going -q -b html -c docs build/pages build/site

lint: $(INSTALLED)
	$(RUN)ruff check .
	$(RUN)mypy

# The wheel, in an environment that has nothing of this folder: it starts, and its peers train. ARGS go to the demo.
SMALL_DEMO := demo --steps 3 --stages 1 --peers_per_stage 1 --data_peers 1
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

wheel:
	rm -rf build/wheel build/wheel-venv build/lib build/bdist.*
	$(PYTHON) -m venv build/wheel-venv
	build/wheel-venv/bin/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	build/wheel-venv/bin/python $(PIP_INSTALL) -c constraints.txt torch
	build/wheel-venv/bin/python $(PIP_INSTALL) -c constraints.txt build/wheel/gwtf_p2p-*.whl
	cd build && wheel-venv/bin/gwtf --version && wheel-venv/bin/gwtf --help > /dev/null
	cd build && wheel-venv/bin/gwtf $(SMALL_DEMO) $(ARGS)

# The lowest versions that setup.cfg allows (torch as pinned: its build is this machine's), the fast tests and a demo on text.
floors:
	rm -rf build/floors-venv
	$(PYTHON) -m venv build/floors-venv
	$(PYTHON) experiments/bench/floors.py --but torch > build/floors.txt
	build/floors-venv/bin/python $(PIP_INSTALL) -c constraints.txt torch
	build/floors-venv/bin/python $(PIP_INSTALL) -c build/floors.txt -e '.[dev]'
	build/floors-venv/bin/python -m gwtf_p2p $(SMALL_DEMO) --dataset 'text:docs/*.md'
	build/floors-venv/bin/python -m pytest -m "not live and not netns and not slow" $(ARGS)

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say which with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN)python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(RUN)python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
