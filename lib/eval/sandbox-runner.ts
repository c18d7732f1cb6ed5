/**
 * The Python program inside the sandbox. It takes a JSON description of its limits from the command
 * line and a program from standard input. Its first process builds the root folder (unless
 * bubblewrap has built it), gives up all rights, and forks. The second process sets its limits,
 * filters its system calls, and runs the program. The first one waits, and writes the outcome to
 * file descriptor 3, which the program's process does not have.
 *
 * The program runs as the metric `code_eval` of Hugging Face runs it: `exec(program, {})`, so that
 * `__name__` is not `"__main__"`, and a call of `exit` is a failure.
 *
 * A program passes if a secret arrives. Python's own C functions write it after the program's end:
 * nested `map` objects call `exec`, turn its None into the secret, and call `os.write`. No frame and
 * no variable has the secret, and the garbage collector does not list the objects that do, so
 * Python code can neither send it before its end nor change how it is sent.
 *
 * The filter adds to the namespaces: it refuses sockets of families without a namespace (vsock),
 * namespaces inside the sandbox, memory that no resource limit counts, and new processes, because
 * each would have a limit of memory of its own.
 */
export const sandboxRunner = String.raw`
import ctypes, errno, gc, itertools, json, os, platform, resource, signal, struct, sys, time

settings = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)

def call(name, *arguments):
    if getattr(libc, name)(*arguments) == -1:
        code = ctypes.get_errno()
        raise OSError(code, name + " " + str(arguments[:3]) + ": " + os.strerror(code))

# Values of <sys/mount.h>.
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE, RELATIME = (
    1, 2, 4, 8, 32, 4096, 16384, 1 << 18, 1 << 21)

def mount(source, target, kind, flags, data=None):
    text = lambda value: value.encode() if value is not None else None
    call("mount", text(source), text(target), text(kind), ctypes.c_ulong(flags), text(data))

def mount_tmpfs(target, mode, size):
    mount("tmpfs", target, "tmpfs", NOSUID | NODEV, f"mode={mode},size={size},nr_inodes=4096")

def bind(path, root):
    target = root + path
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "a").close()
    mount(path, target, None, BIND | REC)
    # A user namespace may not drop the flags that the mount has outside.
    flags = os.statvfs(target).f_flag
    kept = flags & (NOSUID | NODEV | NOEXEC | 1024 | 2048) | (RELATIME if flags & 4096 else 0)
    mount(None, target, None, REMOUNT | BIND | RDONLY | NOSUID | kept)

def build_root():
    root = "/sys"  # a folder that every system has, and that no file of Python is in
    mount(None, "/", None, REC | PRIVATE)
    mount_tmpfs(root, "755", "1m")
    for path, target in settings["links"]:
        os.symlink(target, root + path)
    for path in settings["paths"] + ["/dev/null", "/dev/zero", "/dev/urandom"]:
        bind(path, root)
    os.mkdir(root + "/tmp")
    mount_tmpfs(root + "/tmp", "1777", settings["diskBytes"])
    mount(None, root, None, REMOUNT | BIND | RDONLY | NOSUID | NODEV)
    # chroot instead of pivot_root: the kernel refuses user namespaces to a process in a chroot.
    os.chroot(root)

def give_up_rights():
    os.chdir("/tmp")
    for capability in range(64):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
    if settings["uid"] is not None:
        os.setgroups([])
        os.setresgid(*[settings["uid"]] * 3)
        os.setresuid(*[settings["uid"]] * 3)
    header = struct.pack("Ii", 0x20080522, 0)
    call("capset", header, bytes(24))
    call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    call("prctl", 4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: no process may trace this one

def limit_resources():
    def limit(kind, value):
        resource.setrlimit(kind, (value, value))
    limit(resource.RLIMIT_CPU, settings["cpuSeconds"])
    limit(resource.RLIMIT_AS, settings["memoryBytes"])
    limit(resource.RLIMIT_FSIZE, settings["fileBytes"])
    limit(resource.RLIMIT_NOFILE, settings["openFiles"])
    limit(resource.RLIMIT_NPROC, settings["processes"])
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_MEMLOCK, 0)
    limit(resource.RLIMIT_MSGQUEUE, 0)

# AUDIT_ARCH, socket, clone, prlimit64, and refused calls: fork vfork (x86_64) unshare setns mount umount2 pivot_root chroot ptrace
# shmget semget msgget keyctl add_key request_key bpf perf_event_open userfaultfd io_uring_setup
# memfd_create memfd_secret process_vm_readv process_vm_writev kexec_load init_module finit_module
# reboot swapon open_by_handle_at fsopen open_tree move_mount fsmount mq_open personality setpriority
# sched_setparam sched_setscheduler sched_setaffinity sched_setattr
machines = {
    "x86_64": (0xC000003E, 41, 56, 302, [
        57, 58, 272, 308, 165, 166, 155, 161, 101, 29, 64, 68, 250, 248, 249, 321, 298, 323, 425, 319, 447,
        310, 311, 246, 175, 313, 169, 167, 304, 430, 428, 429, 432, 240, 135, 141,
        142, 144, 203, 314]),
    "aarch64": (0xC00000B7, 198, 220, 261, [
        97, 268, 40, 39, 41, 51, 117, 194, 190, 186, 219, 217, 218, 280, 241, 282, 425, 279, 447,
        270, 271, 104, 105, 273, 142, 224, 265, 430, 428, 429, 432, 180, 92, 140,
        118, 119, 122, 274]),
}

def filter_calls():
    audit, socket, clone, prlimit, refused = machines[platform.machine()]
    allow, kill = 0x7FFF0000, 0x80000000
    refuse = lambda code: 0x00050000 | code
    load, equal, above, bits, end = 0x20, 0x15, 0x35, 0x45, 0x06
    code = [(load, 0, 0, 4), (equal, 1, 0, audit), (end, 0, 0, kill), (load, 0, 0, 0)]
    code += [(above, 0, 1, 0x40000000), (end, 0, 0, kill)]  # the x32 calls of x86_64
    for number in refused:
        code += [(equal, 0, 1, number), (end, 0, 0, refuse(errno.EPERM))]
    # clone3 hides its flags from a filter; the C library then uses clone.
    code += [(equal, 0, 1, 435), (end, 0, 0, refuse(errno.ENOSYS))]
    code += [(equal, 0, 4, socket), (load, 0, 0, 16), (equal, 0, 1, 1), (end, 0, 0, allow),
             (end, 0, 0, refuse(errno.EACCES))]
    # A process may limit itself, and not the first process, which has the same user.
    code += [(equal, 0, 4, prlimit), (load, 0, 0, 16), (equal, 0, 1, 0), (end, 0, 0, allow),
             (end, 0, 0, refuse(errno.EPERM))]
    # Threads (CLONE_THREAD) without new namespaces.
    code += [(equal, 0, 4, clone), (load, 0, 0, 16), (bits, 1, 0, 0x7E020000),
             (bits, 1, 0, 0x00010000), (end, 0, 0, refuse(errno.EPERM)), (end, 0, 0, allow)]
    packed = b"".join(struct.pack("HBBI", *one) for one in code)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(buffer))
    call("prctl", 22, ctypes.c_ulong(2), program, 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER

def tell(kind, text=""):
    os.write(end, json.dumps([kind, text[:500]]).encode() + b"\n")

def hide(value):
    # The garbage collector lists no object that it does not track. Such an object must live on,
    # because its end would take it off the collector's list.
    if gc.is_tracked(value):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
        ctypes.pythonapi.PyObject_GC_UnTrack(ctypes.py_object(value))

def steps_of(program, secret):
    once = lambda value: itertools.repeat(value, 1)
    secrets = {None: secret}
    choose = secrets.__getitem__
    steps = map(os.write, once(end), map(choose, map(exec, once(program), once({}))))
    hide(secrets)
    hide(choose)
    parts = [steps]
    for value in parts:
        hide(value)
        parts += [one for one in gc.get_referents(value) if isinstance(one, (map, tuple, itertools.repeat))]
    return steps

def second_process(program, secret):
    """Steps that run the program, and then say that it passed."""
    try:
        # A group of its own: a signal to the whole group must not reach the first process.
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.close(3)
        limit_resources()
        filter_calls()
        import site
        site.main()
        steps = steps_of(program, secret)
        os.write(end, b"ready\n")
        return steps
    except BaseException as error:
        os.write(end, ("limits: " + repr(error)).encode())
        os._exit(0)

def outcome(child, answer, secret):
    deadline = time.monotonic() + settings["wallSeconds"]
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return ["timeout", f"{settings['wallSeconds']} s"]
        signal.sigtimedwait([signal.SIGCHLD], left)
        ended = 1
        while ended:
            # Orphans of the program become children of this process.
            ended, status = os.waitpid(-1, os.WNOHANG)
            if ended == child:
                return told(answer, secret) or how(status)

failures = {"assertion", "exception", "memory", "exit"}

def told(answer, secret):
    os.set_blocking(answer, False)
    try:
        text = os.read(answer, 65536)
    except BlockingIOError:
        return None
    if text and not text.startswith(b"ready\n"):
        return ["refused", text.decode("utf-8", "replace")]
    if secret in text:
        return ["passed", ""]
    try:
        # The program may have written anything.
        kind, detail = json.loads(text.split(b"\n")[1])
        return [kind, detail] if kind in failures and isinstance(detail, str) else None
    except (ValueError, TypeError, RecursionError):
        return None

def how(status):
    if os.WIFEXITED(status):
        return ["exit", "exit code " + str(os.WEXITSTATUS(status))]
    number = os.WTERMSIG(status)
    if number == signal.SIGXCPU or settings["cpuSeconds"] <= resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime:
        return ["timeout", "CPU time"]
    return ["signal", signal.Signals(number).name]

def finish(result):
    os.write(3, json.dumps(result).encode())
    os._exit(0)

def first_process():
    """Returns in the second process only."""
    program = sys.stdin.buffer.read().decode("utf-8", "replace")
    if settings["buildsRoot"]:
        build_root()
    give_up_rights()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    secret = os.urandom(16).hex().encode()
    answer, end = os.pipe()
    child = os.fork()
    if child != 0:
        os.close(end)
        finish(outcome(child, answer, secret))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    os.close(answer)
    return program, secret, end

steps = []
try:
    program, secret, end = first_process()
    steps.append(second_process(program, secret))
    del secret
except BaseException as error:
    finish(["refused", type(error).__name__ + ": " + str(error)])
try:
    if not any(steps.pop()):
        tell("exception", "StopIteration")  # the maps end with it
except AssertionError as error:
    tell("assertion", str(error))
except MemoryError:
    tell("memory")
except SystemExit as error:
    tell("exit", "SystemExit: " + str(error))
except BaseException as error:
    tell("exception", type(error).__name__ + ": " + str(error))
finally:
    os._exit(0)
`;
