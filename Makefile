# Two commands do everything: `make book` and `make test`.
#
#   make book                 set up, execute the chapters, build the site in build/site
#   make test                 format, lint, types, tests, chapters run twice in the quick profile, site
#   make store                keep figures and tables of the chapters in data/ (needs the real data)
#   make clean                remove what was built, keep the environment
#
# PyTorch: on Linux `pip install torch` takes a build with CUDA, several gigabytes. To take the CPU
# build, give the address of PyTorch's CPU wheels (see README): make book TORCH_INDEX=<address>

# chapters executed, and files tested, at the same time
JOBS ?= 2
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PARALLEL = --numprocesses $(JOBS) --dist loadscope  # the tests of a file in one process: they share fits
INSTALLED := $(VENV)/.installed

export OMP_NUM_THREADS := 1
export PYTHONHASHSEED := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Real data beside the project serve where they are; otherwise they are downloaded and checked.
ifneq ($(wildcard ../shared/data/.),)
export NLMEFLOW_DATA_DIR ?= $(abspath ../shared/data)
endif

CHAPTERS := $(sort $(wildcard book/*.ipynb))
PACKAGE := $(shell find nlmeflow -name '*.py') tools/execute.py
STORED := $(shell find data -type f)
EXECUTED := $(CHAPTERS:book/%=build/published/%)
QUICK := $(CHAPTERS:book/%=build/quick/%)

.PHONY: book test store clean setup check-format check-types check-notebooks
.DELETE_ON_ERROR:

book: $(INSTALLED)
	$(MAKE) -j$(JOBS) build/site/index.html
	@echo "The book is in build/site/index.html"

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "Python 3.11 is needed: make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[book,test]'
	touch $@

build/published/%.ipynb: book/%.ipynb $(PACKAGE) $(STORED) | $(INSTALLED)
	$(BIN)/python tools/execute.py $< $@

build/quick/%.ipynb: book/%.ipynb book/parameters/quick/%.yml $(PACKAGE) $(STORED) | $(INSTALLED)
	$(BIN)/python tools/execute.py $< $@ --parameters book/parameters/quick/$*.yml

PAGES := $(wildcard book/*.md) book/references.bib _config.yml _toc.yml

build/site/index.html: $(EXECUTED) $(PAGES)
	$(BIN)/python tools/build.py build/published build/site

build/quick-site/index.html: $(QUICK) $(PAGES)
	$(BIN)/python tools/build.py build/quick build/quick-site

test: $(INSTALLED) check-format check-types check-notebooks
	$(BIN)/python -m pytest $(PARALLEL) tests --ignore=tests/test_site.py
	$(MAKE) -j$(JOBS) build/quick-site/index.html
	$(BIN)/python -m pytest $(PARALLEL) --nbval -p no:cacheprovider $(QUICK)
	$(BIN)/python -m pytest tests/test_site.py

check-format: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

check-types: $(INSTALLED)
	$(BIN)/mypy nlmeflow tools

check-notebooks: $(INSTALLED)
	$(BIN)/nbstripout --verify --extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution" $(CHAPTERS)

store: $(INSTALLED)
	NLMEFLOW_STORE=1 $(BIN)/python tools/execute.py book/shape.ipynb build/store/shape.ipynb
	NLMEFLOW_STORE=1 $(BIN)/python tools/execute.py book/arabidopsis.ipynb build/store/arabidopsis.ipynb

clean:
	rm -rf build
