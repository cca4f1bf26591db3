"""`unet evaluate`: a model and labelled images -> scores and a report."""
