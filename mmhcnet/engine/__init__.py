"""What the tools share: everything between a config file and a running mmengine Runner."""
