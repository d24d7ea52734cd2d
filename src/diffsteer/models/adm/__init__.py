"""ADM and IDDPM networks (Dhariwal and Nichol 2021)."""
