"""Automation: what is out of sync is made again without anybody asking, by declared rules.

One sensor looks at all datasets. It is level-triggered: every look reads from disk and from
Dagster's records what is out of sync now, and remembers only when it looked at sources and which
ticks of a schedule it has served. So what changes while no daemon runs is found when one does.
"""
