"""One module for each section of the report; `section.py` says what it has."""
