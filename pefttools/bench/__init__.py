"""Comparing methods: suites of trials, learning-rate tuning, statistics, a report, and advice for your own data."""
