"""python -m nlmeflow.studies STUDY.yml: run a study; see `nlmeflow.studies.run`."""

from nlmeflow.studies.run import main

if __name__ == "__main__":
    main()
