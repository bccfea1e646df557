"""The guardian: a process on the box that carries out duties after training and restarts dead supervisors."""
