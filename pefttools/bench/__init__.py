"""Which method is best: suites of trials, fair tuning, honest statistics, a report, and advice on a user's own data."""
