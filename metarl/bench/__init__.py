"""`metarl bench`: what acting, updates and meta-gradients cost, beside comparators.

`plan.py` which cases there are, `command.py` runs each in a process of its own,
`worker.py` is that process, `table.py` what a person sees. `acting.py`, `learning.py`
and `whole_step.py` prepare the cases, `synthetic.py` their experience, `measure.py`
times them. Sits beside `train` and `evaluation`.
"""
