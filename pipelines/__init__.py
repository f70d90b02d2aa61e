from pipelines.foreign import silence

silence()
