"""Who is who on this host: processes to VMs, fds to devices and peers."""
