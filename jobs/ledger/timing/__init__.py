"""How long jobs take.

`stage_times` says where the time of a job goes, `workloads` what decides its speed, `speeds` what was measured, `rates`
what a scheduling decision needs of that, `forecasts` what was forecast and what happened, `promised_work` what is left
of jobs with a promise.
"""
