"""`nearfar benchmark`: this library beside others on the user's own machine. Importing it loads no torch and no peer.

cases.py lists what is measured and the bars, run.py runs it, a process a case and figure of memory, show.py prints it;
subjects.py, objectives.py and stores.py are what those processes run, and measure.py takes times and memory.
"""
