"""A run under watch: its schedule, the clock of its terminal phase, its history and its folder.

Nothing here knows a trainer; what is written outlives a kill, and holds no secret.
"""
