"""Repositories made from Debian source packages.

Bazel compiles the library itself, so that the optimised, the asan and the tsan configuration each get objects
made with their own flags (a prebuilt archive hides errors from asan and invents races for tsan).
"""

def _debian_source_impl(ctx):
    unpack = ctx.path(Label("//third_party:debian_source.sh"))
    command = ["bash", str(unpack), ctx.attr.package, str(ctx.path("."))]
    if ctx.attr.prepare:
        command.append(str(ctx.path(ctx.attr.prepare)))
    ctx.report_progress("unpacking the source of " + ctx.attr.package)
    done = ctx.execute(command, timeout = 600)
    if done.return_code != 0:
        fail("no source of the Debian package %s: %s%s" % (ctx.attr.package, done.stdout, done.stderr))
    if ctx.attr.build_file:
        ctx.delete("BUILD.bazel")
        ctx.symlink(ctx.path(ctx.attr.build_file), "BUILD.bazel")

debian_source = repository_rule(
    implementation = _debian_source_impl,
    attrs = {
        "build_file": attr.label(allow_single_file = True, doc = "for sources without BUILD files"),
        "package": attr.string(mandatory = True, doc = "the name of the source package"),
        "prepare": attr.label(allow_single_file = True, doc = "a script to run in the unpacked tree"),
    },
)
