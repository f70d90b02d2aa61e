"""What each training sample is: the pure plan, from the manifest alone (`robometer.sampling.plan`)."""
