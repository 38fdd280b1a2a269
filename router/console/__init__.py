"""The live page at /console: what this router knows, for people who watch.

Owns the page's files, the history behind its curves and the stream that feeds it. Reads what others keep and changes
nothing; while nobody watches, only the history is fed, by requests that end.
"""
