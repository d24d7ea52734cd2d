"""`diffsteer studio`: a page in the browser on which recipes are tried, compared and measured."""
