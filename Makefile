# Two commands do everything: `make book` and `make test`.
#
#   make book                 set up, execute the chapters, build the site in build/site
#   make setup                the environment .venv alone, in the versions of constraints.txt
#   make test                 every check, every test, chapters run twice in the quick profile, site
#   make quick                every check of the code and the fast tests, in a minute and a half
#   make report CSV=my.csv INDIVIDUAL=variety TIME=day RESPONSE=greenness
#                             analyse your own table; report and tables in build/report (OUT=...)
#   make study STUDY=core     run a study of tools/studies into data/studies; goes on where it was interrupted
#   make study PROFILE=quick  a few jobs of it again: have they the stored rows?
#   make store                keep figures and tables of the chapters in data/ (needs the real data)
#   make print                the whole book as one PDF, build/print/book.pdf (needs Chromium or Chrome)
#   make class                class notebooks in build/class: the exercises without their solutions
#   make clean                remove what was built, keep the environment
#
# PyTorch: on Linux `pip install torch` takes a build with CUDA, several gigabytes. The CPU build:
#   make book TORCH_INDEX=https://download.pytorch.org/whl/cpu
#
# Versions are those of constraints.txt. The package itself accepts the ranges of pyproject.toml.

# chapters executed, files tested, and jobs of a study measured, at the same time
JOBS ?= 2
STUDY ?= core
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# the tests of a file in one process: they share fits
PARALLEL = --numprocesses $(JOBS) --dist loadscope --no-loadscope-reorder
INSTALLED := $(VENV)/.installed

export OMP_NUM_THREADS := 1
export PYTHONHASHSEED := 0
# freed memory stays with the process (glibc); to return it and ask for it again costs a twelfth of the time
export MALLOC_TRIM_THRESHOLD_ := 1073741824
export MALLOC_MMAP_THRESHOLD_ := 33554432
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Real data beside the project serve where they are; otherwise they are downloaded and checked.
ifneq ($(wildcard ../shared/data/.),)
export NLMEFLOW_DATA_DIR ?= $(abspath ../shared/data)
endif

# the longest first, so that no process is left waiting for one of them at the end
LONGEST := $(patsubst %,book/%.ipynb,arabidopsis shape your_data multimodality flows population_law)
CHAPTERS := $(LONGEST) $(filter-out $(LONGEST),$(sort $(wildcard book/*.ipynb)))
PACKAGE := $(shell find nlmeflow -name '*.py') tools/execute.py tools/narrow.py tools/startup.py
STORED := $(shell find data -type f)
EXECUTED := $(CHAPTERS:book/%=build/published/%)
QUICK := $(CHAPTERS:book/%=build/quick/%)

.PHONY: book test quick report study store print class clean setup check-code check-format check-types check-layers check-dead check-notebooks
.DELETE_ON_ERROR:

book: $(INSTALLED)
	$(MAKE) -j$(JOBS) build/site/index.html
	@echo "The book is in build/site/index.html"

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "Python 3.11 is needed: make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --constraint constraints.txt --editable '.[book,test]'
	touch $@

build/published/%.ipynb: book/%.ipynb $(PACKAGE) $(STORED) | $(INSTALLED)
	$(BIN)/python tools/execute.py $< $@

build/quick/%.ipynb: book/%.ipynb book/parameters/quick/%.yml $(PACKAGE) $(STORED) | $(INSTALLED)
	$(BIN)/python tools/execute.py $< $@ --parameters book/parameters/quick/$*.yml

PAGES := $(wildcard book/*.md book/_static/* book/interactive/* data/interactive/* data/example/*) book/references.bib _config.yml _toc.yml \
	tools/build.py tools/pages.py tools/slim.py tools/equations.py tools/author_year.py

build/site/index.html: $(EXECUTED) $(PAGES)
	$(BIN)/python tools/build.py build/published build/site

build/quick-site/index.html: $(QUICK) $(PAGES)
	$(BIN)/python tools/build.py build/quick build/quick-site

test: $(INSTALLED)
	$(MAKE) -j$(JOBS) $(QUICK) build/quick-site/index.html check-code check-notebooks
	$(BIN)/python -m pytest $(PARALLEL) --nbval -p no:cacheprovider $(QUICK) tests

OUT ?= build/report
SETTINGS := INDIVIDUAL TIME RESPONSE CURVE GROUP COVARIATES FIXED RESIDUAL LOWER UPPER STEP REPLICATES PARAMETER \
	THRESHOLD TIME_UNIT RESPONSE_UNIT FOLDS REFITS SEED
lowercase = $(shell echo $(1) | tr A-Z a-z)

report: $(INSTALLED)
	@test -n "$(CSV)" || { echo "Name your file: make report CSV=my.csv INDIVIDUAL=variety TIME=day ..."; exit 2; }
	@$(BIN)/python tools/report.py "$(CSV)" --out "$(OUT)" \
		$(foreach name,$(SETTINGS),$(if $($(name)),--set "$(call lowercase,$(name))=$($(name))"))

quick: $(INSTALLED)
	$(MAKE) -j$(JOBS) check-code
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow" tests --ignore-glob='tests/test_site*.py' --ignore=tests/test_project.py

check-code: check-format check-types check-layers check-dead

check-format: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

check-types: $(INSTALLED)
	$(BIN)/mypy nlmeflow tools

check-layers: $(INSTALLED)
	$(BIN)/lint-imports --no-logo --no-cache

check-dead: $(INSTALLED)
	$(BIN)/python tools/examples.py build/examples.py
	$(BIN)/vulture

check-notebooks: $(INSTALLED)
	$(BIN)/nbstripout --verify --extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution" $(CHAPTERS)

RUNNER = $(BIN)/python -m nlmeflow.studies

study: $(INSTALLED)
ifeq ($(PROFILE),quick)
	$(RUNNER) check tools/studies/$(STUDY).yml --against data/studies/$(STUDY) --processes $(JOBS)
else
	$(RUNNER) run tools/studies/$(STUDY).yml --out data/studies/$(STUDY) --processes $(JOBS)
endif

store: $(INSTALLED)
	NLMEFLOW_STORE=1 $(BIN)/python tools/execute.py book/shape.ipynb build/store/shape.ipynb
	NLMEFLOW_STORE=1 $(BIN)/python tools/execute.py book/arabidopsis.ipynb build/store/arabidopsis.ipynb
	NLMEFLOW_STORE=1 $(BIN)/python tools/execute.py book/senescence.ipynb build/store/senescence.ipynb

print: book
	$(BIN)/python tools/paper.py build/site build/print/book.pdf
	@echo "The book is in build/print/book.pdf"

class: $(INSTALLED)
	$(BIN)/python tools/classroom.py

clean:
	rm -rf build
