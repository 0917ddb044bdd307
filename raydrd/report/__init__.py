"""What people read at the end of a run: a table in the terminal and one self-contained HTML page."""
