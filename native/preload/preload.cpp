// What callers of torch_memory_saver put into LD_PRELOAD. It has nothing to do: the Python side leases what torch allocates.
//
// miles looks for the name of the variable below in the file, to know whether it may ask for backups on a disk.

extern "C" __attribute__((visibility("default"))) const char *vrb_preload_understands(void);
extern "C" const char *vrb_preload_understands(void) {
  return "TMS_INIT_ENABLE TMS_INIT_ENABLE_CPU_BACKUP TMS_INIT_ENABLE_DISK_BACKUP";
}
