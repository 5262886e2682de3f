# SPDX-License-Identifier: MIT
"""Names of system calls and of ioctl requests, by number, and what each kind of call does."""

from enum import StrEnum

_X86_64 = {
    0: """
        read write open close stat fstat lstat poll lseek mmap mprotect munmap brk rt_sigaction
        rt_sigprocmask rt_sigreturn ioctl pread64 pwrite64 readv writev access pipe select
        sched_yield mremap msync mincore madvise shmget shmat shmctl dup dup2 pause nanosleep
        getitimer alarm setitimer getpid sendfile socket connect accept sendto recvfrom sendmsg
        recvmsg shutdown bind listen getsockname getpeername socketpair setsockopt getsockopt clone
        fork vfork execve exit wait4 kill uname semget semop semctl shmdt msgget msgsnd msgrcv
        msgctl fcntl flock fsync fdatasync truncate ftruncate getdents getcwd chdir fchdir rename
        mkdir rmdir creat link unlink symlink readlink chmod fchmod chown fchown lchown umask
        gettimeofday getrlimit getrusage sysinfo times ptrace getuid syslog getgid setuid setgid
        geteuid getegid setpgid getppid getpgrp setsid setreuid setregid getgroups setgroups
        setresuid getresuid setresgid getresgid getpgid setfsuid setfsgid getsid capget capset
        rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend sigaltstack utime mknod uselib
        personality ustat statfs fstatfs sysfs getpriority setpriority sched_setparam sched_getparam
        sched_setscheduler sched_getscheduler sched_get_priority_max sched_get_priority_min
        sched_rr_get_interval mlock munlock mlockall munlockall vhangup modify_ldt pivot_root
        _sysctl prctl arch_prctl adjtimex setrlimit chroot sync acct settimeofday mount umount2
        swapon swapoff reboot sethostname setdomainname iopl ioperm create_module init_module
        delete_module get_kernel_syms query_module quotactl nfsservctl getpmsg putpmsg afs_syscall
        tuxcall security gettid readahead setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr
        listxattr llistxattr flistxattr removexattr lremovexattr fremovexattr tkill time futex
        sched_setaffinity sched_getaffinity set_thread_area io_setup io_destroy io_getevents
        io_submit io_cancel get_thread_area lookup_dcookie epoll_create epoll_ctl_old epoll_wait_old
        remap_file_pages getdents64 set_tid_address restart_syscall semtimedop fadvise64
        timer_create timer_settime timer_gettime timer_getoverrun timer_delete clock_settime
        clock_gettime clock_getres clock_nanosleep exit_group epoll_wait epoll_ctl tgkill utimes
        vserver mbind set_mempolicy get_mempolicy mq_open mq_unlink mq_timedsend mq_timedreceive
        mq_notify mq_getsetattr kexec_load waitid add_key request_key keyctl ioprio_set ioprio_get
        inotify_init inotify_add_watch inotify_rm_watch migrate_pages openat mkdirat mknodat
        fchownat futimesat newfstatat unlinkat renameat linkat symlinkat readlinkat fchmodat
        faccessat pselect6 ppoll unshare set_robust_list get_robust_list splice tee sync_file_range
        vmsplice move_pages utimensat epoll_pwait signalfd timerfd_create eventfd fallocate
        timerfd_settime timerfd_gettime accept4 signalfd4 eventfd2 epoll_create1 dup3 pipe2
        inotify_init1 preadv pwritev rt_tgsigqueueinfo perf_event_open recvmmsg fanotify_init
        fanotify_mark prlimit64 name_to_handle_at open_by_handle_at clock_adjtime syncfs sendmmsg
        setns getcpu process_vm_readv process_vm_writev kcmp finit_module sched_setattr
        sched_getattr renameat2 seccomp getrandom memfd_create kexec_file_load bpf execveat
        userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect pkey_alloc
        pkey_free statx io_pgetevents rseq
    """,
    424: """
        pidfd_send_signal io_uring_setup io_uring_enter io_uring_register open_tree move_mount
        fsopen fsconfig fsmount fspick pidfd_open clone3 close_range openat2 pidfd_getfd faccessat2
        process_madvise epoll_pwait2 mount_setattr quotactl_fd landlock_create_ruleset
        landlock_add_rule landlock_restrict_self memfd_secret process_mrelease futex_waitv
        set_mempolicy_home_node cachestat fchmodat2
    """,
}
"""asm/unistd_64.h: names in the order of their numbers, by the number of the first."""

_AARCH64 = {
    0: """
        io_setup io_destroy io_submit io_cancel io_getevents setxattr lsetxattr fsetxattr getxattr
        lgetxattr fgetxattr listxattr llistxattr flistxattr removexattr lremovexattr fremovexattr
        getcwd lookup_dcookie eventfd2 epoll_create1 epoll_ctl epoll_pwait dup dup3 fcntl
        inotify_init1 inotify_add_watch inotify_rm_watch ioctl ioprio_set ioprio_get flock mknodat
        mkdirat unlinkat symlinkat linkat renameat umount2 mount pivot_root nfsservctl statfs
        fstatfs truncate ftruncate fallocate faccessat chdir fchdir chroot fchmod fchmodat fchownat
        fchown openat close vhangup pipe2 quotactl getdents64 lseek read write readv writev pread64
        pwrite64 preadv pwritev sendfile pselect6 ppoll signalfd4 vmsplice splice tee readlinkat
        fstatat fstat sync fsync fdatasync sync_file_range timerfd_create timerfd_settime
        timerfd_gettime utimensat acct capget capset personality exit exit_group waitid
        set_tid_address unshare futex set_robust_list get_robust_list nanosleep getitimer setitimer
        kexec_load init_module delete_module timer_create timer_gettime timer_getoverrun
        timer_settime timer_delete clock_settime clock_gettime clock_getres clock_nanosleep syslog
        ptrace sched_setparam sched_setscheduler sched_getscheduler sched_getparam sched_setaffinity
        sched_getaffinity sched_yield sched_get_priority_max sched_get_priority_min
        sched_rr_get_interval restart_syscall kill tkill tgkill sigaltstack rt_sigsuspend
        rt_sigaction rt_sigprocmask rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigreturn
        setpriority getpriority reboot setregid setgid setreuid setuid setresuid getresuid setresgid
        getresgid setfsuid setfsgid times setpgid getpgid getsid setsid getgroups setgroups uname
        sethostname setdomainname getrlimit setrlimit getrusage umask prctl getcpu gettimeofday
        settimeofday adjtimex getpid getppid getuid geteuid getgid getegid gettid sysinfo mq_open
        mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr msgget msgctl msgrcv msgsnd
        semget semctl semtimedop semop shmget shmctl shmat shmdt socket socketpair bind listen
        accept connect getsockname getpeername sendto recvfrom setsockopt getsockopt shutdown
        sendmsg recvmsg readahead brk munmap mremap add_key request_key keyctl clone execve mmap
        fadvise64 swapon swapoff mprotect msync mlock munlock mlockall munlockall mincore madvise
        remap_file_pages mbind get_mempolicy set_mempolicy migrate_pages move_pages
        rt_tgsigqueueinfo perf_event_open accept4 recvmmsg
    """,
    260: """
        wait4 prlimit64 fanotify_init fanotify_mark name_to_handle_at open_by_handle_at
        clock_adjtime syncfs setns sendmmsg process_vm_readv process_vm_writev kcmp finit_module
        sched_setattr sched_getattr renameat2 seccomp getrandom memfd_create bpf execveat
        userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect pkey_alloc
        pkey_free statx io_pgetevents rseq kexec_file_load
    """,
    403: """
        clock_gettime64 clock_settime64 clock_adjtime64 clock_getres_time64 clock_nanosleep_time64
        timer_gettime64 timer_settime64 timerfd_gettime64 timerfd_settime64 utimensat_time64
        pselect6_time64 ppoll_time64
    """,
    416: """
        io_pgetevents_time64 recvmmsg_time64 mq_timedsend_time64 mq_timedreceive_time64
        semtimedop_time64 rt_sigtimedwait_time64 futex_time64 sched_rr_get_interval_time64
        pidfd_send_signal io_uring_setup io_uring_enter io_uring_register open_tree move_mount
        fsopen fsconfig fsmount fspick pidfd_open clone3 close_range openat2 pidfd_getfd faccessat2
        process_madvise epoll_pwait2 mount_setattr quotactl_fd landlock_create_ruleset
        landlock_add_rule landlock_restrict_self memfd_secret process_mrelease futex_waitv
        set_mempolicy_home_node cachestat fchmodat2
    """,
}
"""asm-generic/unistd.h"""

_IOCTLS = """
    ae00=KVM_GET_API_VERSION  ae01=KVM_CREATE_VM  c004ae02=KVM_GET_MSR_INDEX_LIST  ae06=KVM_S390_ENABLE_SIE
    ae03=KVM_CHECK_EXTENSION  ae04=KVM_GET_VCPU_MMAP_SIZE  c008ae05=KVM_GET_SUPPORTED_CPUID
    c008ae09=KVM_GET_EMULATED_CPUID  c004ae0a=KVM_GET_MSR_FEATURE_INDEX_LIST  4018ae40=KVM_SET_MEMORY_REGION
    ae41=KVM_CREATE_VCPU  4010ae42=KVM_GET_DIRTY_LOG  4020ae43=KVM_SET_MEMORY_ALIAS
    ae44=KVM_SET_NR_MMU_PAGES  ae45=KVM_GET_NR_MMU_PAGES  4020ae46=KVM_SET_USER_MEMORY_REGION
    ae47=KVM_SET_TSS_ADDR  4008ae48=KVM_SET_IDENTITY_MAP_ADDR  4018ae50=KVM_S390_UCAS_MAP
    4018ae51=KVM_S390_UCAS_UNMAP  4008ae52=KVM_S390_VCPU_FAULT  ae60=KVM_CREATE_IRQCHIP
    4008ae61=KVM_IRQ_LINE  c208ae62=KVM_GET_IRQCHIP  8208ae63=KVM_SET_IRQCHIP  ae64=KVM_CREATE_PIT
    c048ae65=KVM_GET_PIT  8048ae66=KVM_SET_PIT  c008ae67=KVM_IRQ_LINE_STATUS  8040ae69=KVM_ASSIGN_PCI_DEVICE
    4008ae6a=KVM_SET_GSI_ROUTING  4040ae70=KVM_ASSIGN_DEV_IRQ  ae71=KVM_REINJECT_CONTROL
    4040ae72=KVM_DEASSIGN_PCI_DEVICE  4008ae73=KVM_ASSIGN_SET_MSIX_NR  4010ae74=KVM_ASSIGN_SET_MSIX_ENTRY
    4040ae75=KVM_DEASSIGN_DEV_IRQ  4020ae76=KVM_IRQFD  4040ae77=KVM_CREATE_PIT2  ae78=KVM_SET_BOOT_CPU_ID
    4040ae79=KVM_IOEVENTFD  4038ae7a=KVM_XEN_HVM_CONFIG  4030ae7b=KVM_SET_CLOCK  8030ae7c=KVM_GET_CLOCK
    8070ae9f=KVM_GET_PIT2  4070aea0=KVM_SET_PIT2  4080aea1=KVM_PPC_GET_PVINFO  aea2=KVM_SET_TSC_KHZ
    aea3=KVM_GET_TSC_KHZ  4040aea4=KVM_ASSIGN_SET_INTX_MASK  4020aea5=KVM_SIGNAL_MSI
    8250aea6=KVM_PPC_GET_SMMU_INFO  c004aea7=KVM_PPC_ALLOCATE_HTAB  4010aeab=KVM_GET_ONE_REG
    8010aead=KVM_PPC_RESIZE_HPT_PREPARE  8010aeae=KVM_PPC_RESIZE_HPT_COMMIT
    4020aeb2=KVM_SET_PMU_EVENT_FILTER  aeb3=KVM_PPC_SVM_OFF  c00caee0=KVM_CREATE_DEVICE
    4018aee1=KVM_SET_DEVICE_ATTR  4018aee2=KVM_GET_DEVICE_ATTR  4018aee3=KVM_HAS_DEVICE_ATTR  ae80=KVM_RUN
    8090ae81=KVM_GET_REGS  4090ae82=KVM_SET_REGS  8138ae83=KVM_GET_SREGS  4138ae84=KVM_SET_SREGS
    c018ae85=KVM_TRANSLATE  4004ae86=KVM_INTERRUPT  c008ae88=KVM_GET_MSRS  4008ae89=KVM_SET_MSRS
    4008ae8a=KVM_SET_CPUID  4004ae8b=KVM_SET_SIGNAL_MASK  81a0ae8c=KVM_GET_FPU  41a0ae8d=KVM_SET_FPU
    8400ae8e=KVM_GET_LAPIC  4400ae8f=KVM_SET_LAPIC  4008ae90=KVM_SET_CPUID2  c008ae91=KVM_GET_CPUID2
    c028ae92=KVM_TPR_ACCESS_REPORTING  4008ae93=KVM_SET_VAPIC_ADDR  4010ae94=KVM_S390_INTERRUPT
    4008ae95=KVM_S390_STORE_STATUS  4010ae96=KVM_S390_SET_INITIAL_PSW  ae97=KVM_S390_INITIAL_RESET
    8004ae98=KVM_GET_MP_STATE  4004ae99=KVM_SET_MP_STATE  ae9a=KVM_NMI  4048ae9b=KVM_SET_GUEST_DEBUG
    4008ae9c=KVM_X86_SETUP_MCE  8008ae9d=KVM_X86_GET_MCE_CAP_SUPPORTED  4040ae9e=KVM_X86_SET_MCE
    8040ae9f=KVM_GET_VCPU_EVENTS  4040aea0=KVM_SET_VCPU_EVENTS  8080aea1=KVM_GET_DEBUGREGS
    4080aea2=KVM_SET_DEBUGREGS  4068aea3=KVM_ENABLE_CAP  9000aea4=KVM_GET_XSAVE  5000aea5=KVM_SET_XSAVE
    8188aea6=KVM_GET_XCRS  4188aea7=KVM_SET_XCRS  4010aeaa=KVM_DIRTY_TLB  4010aeac=KVM_SET_ONE_REG
    aead=KVM_KVMCLOCK_CTRL  c008aeb0=KVM_GET_REG_LIST  4040aeb1=KVM_S390_MEM_OP  4040aeb2=KVM_S390_GET_SKEYS
    4040aeb3=KVM_S390_SET_SKEYS  4048aeb4=KVM_S390_IRQ  4020aeb5=KVM_S390_SET_IRQ_STATE
    4020aeb6=KVM_S390_GET_IRQ_STATE  aeb7=KVM_SMI  c020aeb8=KVM_S390_GET_CMMA_BITS
    4020aeb9=KVM_S390_SET_CMMA_BITS  c008aeba=KVM_MEMORY_ENCRYPT_OP  8010aebb=KVM_MEMORY_ENCRYPT_REG_REGION
    8010aebc=KVM_MEMORY_ENCRYPT_UNREG_REGION  4018aebd=KVM_HYPERV_EVENTFD  c080aebe=KVM_GET_NESTED_STATE
    4080aebf=KVM_SET_NESTED_STATE  c018aec0=KVM_CLEAR_DIRTY_LOG  c008aec1=KVM_GET_SUPPORTED_HV_CPUID
    4004aec2=KVM_ARM_VCPU_FINALIZE  aec3=KVM_S390_NORMAL_RESET  aec4=KVM_S390_CLEAR_RESET
    c020aec5=KVM_S390_PV_COMMAND  4188aec6=KVM_X86_SET_MSR_FILTER  aec7=KVM_RESET_DIRTY_RINGS
    c048aec8=KVM_XEN_HVM_GET_ATTR  4048aec9=KVM_XEN_HVM_SET_ATTR  c048aeca=KVM_XEN_VCPU_GET_ATTR
    4048aecb=KVM_XEN_VCPU_SET_ATTR  400caed0=KVM_XEN_HVM_EVTCHN_SEND  8140aecc=KVM_GET_SREGS2
    4020aeae=KVM_ARM_VCPU_INIT  8020aeaf=KVM_ARM_PREFERRED_TARGET  8030aeb4=KVM_ARM_MTE_COPY_TAGS
    4140aecd=KVM_SET_SREGS2  aece=KVM_GET_STATS_FD  9000aecf=KVM_GET_XSAVE2
    c020aed0=KVM_S390_PV_CPU_COMMAND  4048aed1=KVM_S390_ZPCI_OP  3b64=VFIO_GET_API_VERSION
    3b65=VFIO_CHECK_EXTENSION  3b66=VFIO_SET_IOMMU  3b67=VFIO_GROUP_GET_STATUS
    3b68=VFIO_GROUP_SET_CONTAINER  3b69=VFIO_GROUP_UNSET_CONTAINER  3b6a=VFIO_GROUP_GET_DEVICE_FD
    3b6b=VFIO_DEVICE_GET_INFO  3b6c=VFIO_DEVICE_GET_REGION_INFO  3b6d=VFIO_DEVICE_GET_IRQ_INFO
    3b6e=VFIO_DEVICE_SET_IRQS  3b6f=VFIO_DEVICE_RESET  3b70=VFIO_DEVICE_GET_PCI_HOT_RESET_INFO
    3b71=VFIO_DEVICE_PCI_HOT_RESET  3b72=VFIO_DEVICE_QUERY_GFX_PLANE  3b73=VFIO_DEVICE_GET_GFX_DMABUF
    3b74=VFIO_DEVICE_IOEVENTFD  3b75=VFIO_DEVICE_FEATURE  3b79=VFIO_EEH_PE_OP
    3b76=VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY  3b77=VFIO_IOMMU_SPAPR_TCE_CREATE
    3b78=VFIO_IOMMU_SPAPR_TCE_REMOVE  8008af00=VHOST_GET_FEATURES  4008af00=VHOST_SET_FEATURES
    af01=VHOST_SET_OWNER  af02=VHOST_RESET_OWNER  4008af03=VHOST_SET_MEM_TABLE  4008af04=VHOST_SET_LOG_BASE
    4004af07=VHOST_SET_LOG_FD  4008af10=VHOST_SET_VRING_NUM  4028af11=VHOST_SET_VRING_ADDR
    4008af12=VHOST_SET_VRING_BASE  c008af12=VHOST_GET_VRING_BASE  4008af13=VHOST_SET_VRING_ENDIAN
    4008af14=VHOST_GET_VRING_ENDIAN  4008af20=VHOST_SET_VRING_KICK  4008af21=VHOST_SET_VRING_CALL
    4008af22=VHOST_SET_VRING_ERR  4008af23=VHOST_SET_VRING_BUSYLOOP_TIMEOUT
    4008af24=VHOST_GET_VRING_BUSYLOOP_TIMEOUT  4008af25=VHOST_SET_BACKEND_FEATURES
    8008af26=VHOST_GET_BACKEND_FEATURES  4008af30=VHOST_NET_SET_BACKEND  40e8af40=VHOST_SCSI_SET_ENDPOINT
    40e8af41=VHOST_SCSI_CLEAR_ENDPOINT  4004af42=VHOST_SCSI_GET_ABI_VERSION
    4004af43=VHOST_SCSI_SET_EVENTS_MISSED  4004af44=VHOST_SCSI_GET_EVENTS_MISSED
    4008af60=VHOST_VSOCK_SET_GUEST_CID  4004af61=VHOST_VSOCK_SET_RUNNING  8004af70=VHOST_VDPA_GET_DEVICE_ID
    8001af71=VHOST_VDPA_GET_STATUS  4001af72=VHOST_VDPA_SET_STATUS  8008af73=VHOST_VDPA_GET_CONFIG
    4008af74=VHOST_VDPA_SET_CONFIG  4008af75=VHOST_VDPA_SET_VRING_ENABLE  8002af76=VHOST_VDPA_GET_VRING_NUM
    4004af77=VHOST_VDPA_SET_CONFIG_CALL  8010af78=VHOST_VDPA_GET_IOVA_RANGE
    8004af79=VHOST_VDPA_GET_CONFIG_SIZE  8004af80=VHOST_VDPA_GET_VQS_COUNT
    8004af81=VHOST_VDPA_GET_GROUP_NUM  8004af7a=VHOST_VDPA_GET_AS_NUM  c008af7b=VHOST_VDPA_GET_VRING_GROUP
    4008af7c=VHOST_VDPA_SET_GROUP_ASID  af7d=VHOST_VDPA_SUSPEND  400454c8=TUNSETNOCSUM  400454c9=TUNSETDEBUG
    400454ca=TUNSETIFF  400454cb=TUNSETPERSIST  400454cc=TUNSETOWNER  400454cd=TUNSETLINK
    400454ce=TUNSETGROUP  800454cf=TUNGETFEATURES  400454d0=TUNSETOFFLOAD  400454d1=TUNSETTXFILTER
    800454d2=TUNGETIFF  800454d3=TUNGETSNDBUF  400454d4=TUNSETSNDBUF  401054d5=TUNATTACHFILTER
    401054d6=TUNDETACHFILTER  800454d7=TUNGETVNETHDRSZ  400454d8=TUNSETVNETHDRSZ  400454d9=TUNSETQUEUE
    400454da=TUNSETIFINDEX  801054db=TUNGETFILTER  400454dc=TUNSETVNETLE  800454dd=TUNGETVNETLE
    400454de=TUNSETVNETBE  800454df=TUNGETVNETBE  800454e0=TUNSETSTEERINGEBPF  800454e1=TUNSETFILTEREBPF
    400454e2=TUNSETCARRIER  54e3=TUNGETDEVNETNS  c018aa3f=UFFDIO_API  c020aa00=UFFDIO_REGISTER
    8010aa01=UFFDIO_UNREGISTER  8010aa02=UFFDIO_WAKE  c028aa03=UFFDIO_COPY  c020aa04=UFFDIO_ZEROPAGE
    c018aa06=UFFDIO_WRITEPROTECT  c020aa07=UFFDIO_CONTINUE  40a0ae49=KVM_SET_USER_MEMORY_REGION2
    4020aed2=KVM_SET_MEMORY_ATTRIBUTES  c040aed4=KVM_CREATE_GUEST_MEMFD  3b80=IOMMU_DESTROY
    3b81=IOMMU_IOAS_ALLOC  3b82=IOMMU_IOAS_ALLOW_IOVAS  3b83=IOMMU_IOAS_COPY  3b84=IOMMU_IOAS_IOVA_RANGES
    3b85=IOMMU_IOAS_MAP  3b86=IOMMU_IOAS_UNMAP  3b87=IOMMU_OPTION  3b88=IOMMU_VFIO_IOAS
    3b89=IOMMU_HWPT_ALLOC  3b8a=IOMMU_GET_HW_INFO  3b8b=IOMMU_HWPT_SET_DIRTY_TRACKING
    3b8c=IOMMU_HWPT_GET_DIRTY_BITMAP
"""
"""linux/kvm.h, vfio.h, iommufd.h, vhost.h, if_tun.h, userfaultfd.h. Where two requests of one device class have one
number, the one of the fd that a VMM uses while it migrates."""


def _numbered(runs: dict[int, str]) -> dict[int, str]:
    return {
        first + at: name for first, names in runs.items() for at, name in enumerate(names.split())
    }


_NAMES = {"x86_64": _numbered(_X86_64), "aarch64": _numbered(_AARCH64)}

IOCTLS = {int(number, 16): name for number, name in (word.split("=") for word in _IOCTLS.split())}
"""Names of requests of KVM, VFIO, iommufd, vhost, tun and userfaultfd, by number."""


def name_of(machine: str, number: int) -> str:
    """The name of a system call of a machine (`uname -m`)."""
    return _NAMES.get(machine, {}).get(number, f"syscall {number}")


CONTAINER = "/dev/vfio/vfio"
_OF_CONTAINER = {
    0x3B70: "VFIO_IOMMU_GET_INFO",
    0x3B71: "VFIO_IOMMU_MAP_DMA",
    0x3B72: "VFIO_IOMMU_UNMAP_DMA",
    0x3B73: "VFIO_IOMMU_ENABLE",
    0x3B74: "VFIO_IOMMU_DISABLE",
    0x3B75: "VFIO_IOMMU_DIRTY_PAGES",
}
"""VFIO gives these numbers to devices and to containers."""


def request_name(number: int, target: str | None = None) -> str:
    """The name of an ioctl request; `target` is what its fd is, as /proc/PID/fd shows it."""
    found = _OF_CONTAINER.get(number) if target == CONTAINER else None
    return found or IOCTLS.get(number, f"ioctl {number:#x}")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


class Does(StrEnum):
    """What a call does for its caller. `wait`: nothing, until somebody else does something."""

    WORK = "work"
    SEND = "send"
    RECEIVE = "receive"
    WAIT = "wait"


_SENDS = frozenset(
    ["sendto", "sendmsg", "sendmmsg", "write", "writev", "pwrite64", "pwritev", "pwritev2"]
)
_RECEIVES = frozenset(
    ["recvfrom", "recvmsg", "recvmmsg", "read", "readv", "pread64", "preadv", "preadv2"]
)
_WAITS = _words(
    """
    poll ppoll select pselect6 epoll_wait epoll_pwait epoll_pwait2 epoll_wait_old futex futex_waitv
    futex_wait nanosleep clock_nanosleep pause wait4 waitid io_getevents io_pgetevents io_uring_enter
    rt_sigtimedwait rt_sigsuspend accept accept4 connect semtimedop semop msgrcv restart_syscall
    """
)

FD_FIRST = _words(
    """
    read write close fstat lseek ioctl pread64 pwrite64 readv writev preadv pwritev preadv2 pwritev2
    sendfile connect accept accept4 sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg shutdown bind
    listen getsockname getpeername setsockopt getsockopt fcntl flock fsync fdatasync ftruncate fallocate
    sync_file_range syncfs fadvise64 splice epoll_wait epoll_pwait epoll_pwait2 epoll_ctl io_uring_enter
    dup dup2 dup3 timerfd_settime copy_file_range
    """
)
"""Calls whose first argument is a file descriptor."""


def does(name: str) -> Does:
    """Return what a call of this name does."""
    if name in _WAITS:
        return Does.WAIT
    if name in _SENDS:
        return Does.SEND
    return Does.RECEIVE if name in _RECEIVES else Does.WORK
