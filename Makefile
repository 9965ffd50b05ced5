# Everything runs in .venv, which is built when it is missing.
VENV := .venv
WORKERS := 2
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
# Only what the demo needs: a first look takes about a minute.
DEMO_READY := $(VENV)/.demo_ready
INSTALL := $(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo gallery web-pictures docs-check test coverage test-slow lint docs wheel clean

demo: $(DEMO_READY)
	$(PYTHON) scripts/demo.py demo

# Several tests at once, each with one thread.
test: lint docs
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n $(WORKERS) --dist worksteal

# The same tests, counting lines: a quarter slower.
coverage: $(READY)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n $(WORKERS) --dist worksteal \
		--cov=dr2pipe --cov-report=term:skip-covered --cov-fail-under=90

test-slow: $(READY)
	$(PYTHON) -m pytest -m slow

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The pictures of docs/gallery.md and docs/questions.
gallery: $(READY)
	$(PYTHON) scripts/gallery.py

# The pictures of the web page in docs: pip install selenium, with chromium and chromedriver.
web-pictures: $(READY)
	$(PYTHON) scripts/web_pictures.py

# Every command of README.md and docs.
docs-check: $(READY)
	HF_HUB_OFFLINE=1 $(PYTHON) scripts/check_docs.py

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet

$(DEMO_READY): setup.cfg setup.py pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(INSTALL) -e '.[demo]'
	touch $(DEMO_READY)

$(READY): $(DEMO_READY)
	$(INSTALL) -e '.[all,test,docs,demo]'
	touch $(READY)

# A wheel with presets and default models, for other environments: dist/dr2pipe-*.whl
wheel: $(READY)
	$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist site *.egg-info
