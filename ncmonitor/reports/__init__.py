"""The HTML pages: of one run (``run_page``), and of several side by side (``comparison``).

What a history says in plain words, and how a run stands to what its recipe expects.
"""
