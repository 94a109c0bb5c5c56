"""The words that every other layer speaks: messages, errors, handlers, statistics. Imports nothing of the rest."""
