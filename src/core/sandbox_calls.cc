#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>

#include "src/core/sandbox_parts.h"

namespace blk::sandbox {
namespace {

#if defined(__x86_64__)
constexpr uint32_t kArchitecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr uint32_t kArchitecture = AUDIT_ARCH_AARCH64;
#else
constexpr uint32_t kArchitecture = 0;
#endif
constexpr uint32_t kForeignCalls = 0x40000000;  // x32, on x86-64

// What serving needs, whatever the disk: memory, time, waiting, descriptors that are open already,
// files as far as Landlock allows them. Not in it, among others: starting programs, tracing,
// mounting, kernel modules, namespaces, keys, io_uring (which seccomp cannot see into).
constexpr int kAllowed[] = {
    // Bytes.
    SYS_sendmsg,
    SYS_recvmsg,
    SYS_read,
    SYS_write,
    SYS_epoll_pwait,
    SYS_epoll_pwait2,
    SYS_futex,
    SYS_preadv2,
    SYS_pwritev2,
    SYS_sendto,
    SYS_recvfrom,
    SYS_readv,
    SYS_writev,
    SYS_pread64,
    SYS_pwrite64,
    SYS_preadv,
    SYS_pwritev,
    SYS_splice,
    SYS_tee,
    SYS_vmsplice,
    SYS_sendfile,
    SYS_copy_file_range,
    SYS_sendmmsg,
    SYS_recvmmsg,
    SYS_accept4,
    SYS_accept,
    SYS_shutdown,
    SYS_getsockopt,
    SYS_setsockopt,
    SYS_getsockname,
    SYS_getpeername,
    SYS_socketpair,
    SYS_pipe2,
    // Waiting.
    SYS_epoll_ctl,
    SYS_epoll_create1,
    SYS_eventfd2,
    SYS_timerfd_create,
    SYS_timerfd_settime,
    SYS_timerfd_gettime,
    SYS_signalfd4,
    SYS_ppoll,
    SYS_pselect6,
    SYS_nanosleep,
    SYS_clock_nanosleep,
    SYS_clock_gettime,
    SYS_clock_getres,
    SYS_gettimeofday,
    // Memory.
    SYS_munmap,
    SYS_mremap,
    SYS_madvise,
    SYS_brk,
    SYS_mlock,
    SYS_mlock2,
    SYS_munlock,
    SYS_msync,
    SYS_mincore,
    SYS_memfd_create,
    SYS_membarrier,
    SYS_getrandom,
    // Threads and signals of this process.
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_rt_sigpending,
    SYS_rt_sigtimedwait,
    SYS_sigaltstack,
    SYS_set_robust_list,
    SYS_get_robust_list,
    SYS_rseq,
    SYS_sched_yield,
    SYS_sched_getaffinity,
    SYS_sched_setaffinity,
    SYS_exit,
    SYS_exit_group,
    SYS_restart_syscall,
    SYS_tgkill,
    SYS_wait4,
    SYS_getpid,
    SYS_gettid,
    SYS_getppid,
    SYS_getuid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getegid,
    SYS_getpgid,
    SYS_uname,
    SYS_sysinfo,
    SYS_getrusage,
    SYS_times,
    SYS_prlimit64,
    SYS_prctl,
    SYS_set_tid_address,
    SYS_getcpu,
    // Files.
    SYS_openat,
    SYS_openat2,
    SYS_close,
    SYS_close_range,
    SYS_fstat,
    SYS_newfstatat,
    SYS_statx,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_readlinkat,
    SYS_lseek,
    SYS_getdents64,
    SYS_getcwd,
    SYS_chdir,
    SYS_fchdir,
    SYS_statfs,
    SYS_fstatfs,
    SYS_fcntl,
    SYS_flock,
    SYS_ioctl,
    SYS_dup,
    SYS_dup3,
    SYS_ftruncate,
    SYS_truncate,
    SYS_fallocate,
    SYS_fadvise64,
    SYS_readahead,
    SYS_fsync,
    SYS_fdatasync,
    SYS_sync_file_range,
    SYS_syncfs,
    SYS_unlinkat,
    SYS_mkdirat,
    SYS_renameat,
    SYS_renameat2,
    SYS_linkat,
    SYS_fchmod,
    SYS_fchmodat,
    SYS_symlinkat,
    SYS_umask,
    SYS_utimensat,
#if defined(__x86_64__)  // the older names of some of the same
    SYS_epoll_wait,
    SYS_epoll_create,
    SYS_eventfd,
    SYS_poll,
    SYS_select,
    SYS_pipe,
    SYS_open,
    SYS_stat,
    SYS_lstat,
    SYS_access,
    SYS_readlink,
    SYS_unlink,
    SYS_rmdir,
    SYS_mkdir,
    SYS_rename,
    SYS_dup2,
    SYS_time,
    SYS_arch_prctl,
    SYS_getrlimit,
    SYS_creat,
#endif
};

class Program {
 public:
  void Add(uint16_t code, uint32_t k, uint8_t jump_true = 0, uint8_t jump_false = 0) {
    code_.push_back({code, jump_true, jump_false, k});
  }
  void Return(uint32_t action) { Add(BPF_RET | BPF_K, action); }
  void LoadField(size_t offset) { Add(BPF_LD | BPF_W | BPF_ABS, static_cast<uint32_t>(offset)); }
  void LoadArgument(int number) {
    // The low half; little-endian, as both architectures are.
    LoadField(offsetof(seccomp_data, args) + sizeof(uint64_t) * static_cast<size_t>(number));
  }
  void IfCall(long number, uint8_t instructions) {
    Add(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(number), 0, instructions);
  }

  void AllowCall(long number) {
    IfCall(number, 1);
    Return(SECCOMP_RET_ALLOW);
  }
  void FailCall(long number, int error) {
    IfCall(number, 1);
    Return(SECCOMP_RET_ERRNO | static_cast<uint32_t>(error));
  }
  // Allowed when argument & mask is (or is not) 0.
  void AllowCallByBits(long number, int argument, uint32_t mask, bool when_zero) {
    IfCall(number, 5);
    LoadArgument(argument);
    Add(BPF_ALU | BPF_AND | BPF_K, mask);
    Add(BPF_JMP | BPF_JEQ | BPF_K, 0, when_zero ? 1 : 0, when_zero ? 0 : 1);
    Return(SECCOMP_RET_ERRNO | EPERM);
    Return(SECCOMP_RET_ALLOW);
  }
  // Allowed when the argument is `value`; goes on looking with the call's number if not.
  void AllowCallWith(long number, int argument, uint32_t value) {
    IfCall(number, 4);
    LoadArgument(argument);
    Add(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1);
    Return(SECCOMP_RET_ALLOW);
    LoadField(offsetof(seccomp_data, nr));
  }

  int Install() {
    sock_fprog program{static_cast<unsigned short>(code_.size()), code_.data()};
    return static_cast<int>(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));
  }

 private:
  std::vector<sock_filter> code_;
};

}  // namespace

absl::StatusOr<std::string> BoundCalls(const SandboxRules& rules) {
  if (kArchitecture == 0)
    return absl::UnimplementedError("system calls not bounded: not on this kind of processor");
  Program program;
  program.LoadField(offsetof(seccomp_data, arch));
  program.IfCall(kArchitecture, 1);
  program.Add(BPF_JMP | BPF_JA, 1);
  program.Return(SECCOMP_RET_KILL_PROCESS);
  program.LoadField(offsetof(seccomp_data, nr));
  program.Add(BPF_JMP | BPF_JGE | BPF_K, kForeignCalls, 0, 1);
  program.Return(SECCOMP_RET_ERRNO | EPERM);
  for (const int number : kAllowed) program.AllowCall(number);
  // New threads, but no processes. glibc falls back to clone() when there is no clone3(), whose
  // arguments cannot be seen from here.
  program.FailCall(SYS_clone3, ENOSYS);
  program.AllowCallByBits(SYS_clone, 0, CLONE_THREAD, /*when_zero=*/false);
  // Signals to ourselves; of others, only whether they are there.
  program.AllowCallWith(SYS_kill, 0, static_cast<uint32_t>(getpid()));
  program.AllowCallWith(SYS_kill, 1, 0);
  // No memory becomes code.
  program.AllowCallByBits(SYS_mmap, 2, PROT_EXEC, /*when_zero=*/true);
  program.AllowCallByBits(SYS_mprotect, 2, PROT_EXEC, /*when_zero=*/true);
  if (rules.network) {
    for (const uint32_t family : {AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_VSOCK})
      program.AllowCallWith(SYS_socket, 0, family);
    program.AllowCall(SYS_connect);
  } else if (!rules.create.empty()) {
    program.AllowCallWith(SYS_socket, 0, AF_UNIX);  // a layer's own control socket
  }
  if (rules.network || !rules.create.empty()) {
    program.AllowCall(SYS_bind);
    program.AllowCall(SYS_listen);
  }
  program.Return(SECCOMP_RET_ERRNO | EPERM);
  if (program.Install() != 0) {
    if (errno == EINVAL || errno == ENOSYS)
      return absl::UnimplementedError("system calls not bounded: this kernel has no seccomp");
    return ErrnoError(errno, "sandbox: seccomp");
  }
  return absl::StrCat(std::size(kAllowed), " system calls by seccomp");
}

}  // namespace blk::sandbox
