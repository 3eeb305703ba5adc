"""A record of a measured context, as `verl-cast diagnose` keeps it."""


def fitness_record(student=(20, 100), teacher=(10, 100), interval=(-0.18, -0.02), problems=25):
    def side(right, samples):
        return {"right": right, "samples": samples, "accuracy": right / samples, "interval": [0.1, 0.3]}

    return {
        "record_version": 1,
        "measured_at": "2026-11-22T10:00:00+00:00",
        "context": "plain",
        "problems": problems,
        "samples": 4,
        "student": side(*student),
        "teacher": side(*teacher),
        "difference": {"value": teacher[0] / teacher[1] - student[0] / student[1], "interval": list(interval)},
    }
