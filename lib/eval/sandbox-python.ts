import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { ResourceError } from "../core/errors.js";

/** A Python interpreter, and the files that it needs in a root folder of its own. */
export interface PythonFiles {
  /** Real path of the interpreter. */
  executable: string;
  version: string;
  /** Files and folders: the interpreter, its standard library, its packages, shared libraries. */
  paths: readonly string[];
  /** Symbolic links on the way to those files, such as `/lib64`, and their targets. */
  links: readonly (readonly [path: string, target: string])[];
}

/**
 * Prints the files as JSON. The shared libraries are those that the interpreter has mapped after it
 * has loaded the modules that bring libraries along. A folder that only has libraries is taken as a
 * whole. In a folder with much else, such as /usr/lib, the library files are taken one by one.
 */
const query = `
import glob, importlib, json, os, site, sys, sysconfig
for name in ("ssl sqlite3 ctypes decimal lzma bz2 zlib hashlib curses readline uuid dbm.gnu "
             "xml.parsers.expat multiprocessing.synchronize numpy").split():
    try: importlib.import_module(name)
    except Exception: pass
base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
wanted = [sysconfig.get_path(name, vars=base) for name in ("stdlib", "platstdlib")]
wanted += [path for path in site.getsitepackages() if path.startswith(sys.base_prefix)]
executable = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
wanted.append(executable)
with open("/proc/self/maps") as maps:
    mapped = {line.split(maxsplit=5)[5].strip() for line in maps if ".so" in line and "/" in line}
shared = {os.path.dirname(path) for path in mapped}
many = {"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"}
for folder in shared:
    if folder in many or os.path.isdir(folder + "/node_modules"):
        wanted += glob.glob(folder + "/*.so") + glob.glob(folder + "/*.so.*")
    else:
        wanted.append(folder)
loaders = glob.glob("/lib64/ld-linux*.so.*") + glob.glob("/lib/ld-*.so.*")
wanted += [os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)) for path in loaders]
links = [(path, os.readlink(path)) for path in ("/lib", "/lib64") if os.path.islink(path)]
found = sorted({os.path.abspath(path) for path in wanted if path and os.path.exists(path)}, key=len)
kept = []
for path in found:
    if not any(path == outer or path.startswith(outer + "/") for outer in kept):
        kept.append(path)
print(json.dumps({"executable": executable, "version": sys.version.split()[0], "paths": kept, "links": links}))
`;

/**
 * Finds the interpreter's files.
 * @param python command or path, such as `python3`
 * @throws ResourceError if there is no such interpreter
 */
export async function pythonFiles(python: string): Promise<PythonFiles> {
  try {
    const { stdout } = await promisify(execFile)(python, ["-I", "-c", query], { timeout: 60_000 });
    return JSON.parse(stdout) as PythonFiles;
  } catch (cause) {
    const { message } = cause as Error;
    throw new ResourceError(
      `[sandbox] expected Python 3 at ${python}, to run the programs that the model writes: ${message}`,
      { cause },
    );
  }
}
