import math

import pytest
import torch
from oracle import Gaussian, as_network

from diffsteer import CLEAN, DDIM, EDM, Cosine, Discrete, DPMpp2M, Flow, Heun, UniPC, grid

F64=torch.float64
Z = torch.linspace(-2, 2, 9, dtype=F64)

def error(sampler, schedule, n, lo, hi):
    data=Gaussian()
    times=torch.linspace(hi,lo,n+1,dtype=F64)
    levels=[schedule.at(t) for t in times]
    *_, x = sampler(data.exact(Z, levels[0]), levels, data)
    return (x-data.exact(Z, levels[-1])).abs().max().item()
for name,s,lo,hi in [("vp",Discrete.scaled_linear(),50,950),("cos",Cosine(),.05,.95),("edm",EDM(),.1,5),("flow",Flow(),.05,.95)]:
    for k in [DDIM(),Heun(schedule=s),DPMpp2M(),UniPC()]:
        es=[error(k,s,n,lo,hi) for n in (16,32,64,128,256,512)]
        print(name,k.__class__.__name__,["%.2e"%e for e in es],["%.2f"%math.log2(a/b) for a,b in zip(es,es[1:])])
