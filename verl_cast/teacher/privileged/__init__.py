"""What the baselines' privileged teachers read besides the problem. No CAST run imports this package."""
