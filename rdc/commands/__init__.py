"""The command `rdc`, its programs about models and images, and what command lines share."""
