"""The methods that CAST is compared with, on the same machinery: OPSD, GRPO+OPSD, RLSD and RLRT (method section 10).

Each is an estimator of its own (`algorithm.adv_estimator=rlsd`) with a group of its own (`algorithm.rlsd`). Their
teachers are privileged: they read a reference or another response of the group, which CAST's never does, and which
`algorithm.cast` cannot select. Left out: OPSD over the whole vocabulary (its sampled-token form is here), SDPO.
"""
