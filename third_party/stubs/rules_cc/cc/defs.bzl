"""The part of rules_cc that is loaded here; this Bazel still has the C++ rules built in."""

def cc_library(**attributes):
    native.cc_library(**attributes)

def cc_binary(**attributes):
    native.cc_binary(**attributes)

def cc_test(**attributes):
    native.cc_test(**attributes)

def cc_import(**attributes):
    native.cc_import(**attributes)

def cc_toolchain(**attributes):
    native.cc_toolchain(**attributes)

def cc_toolchain_suite(**attributes):
    native.cc_toolchain_suite(**attributes)

def cc_proto_library(**attributes):
    native.cc_proto_library(**attributes)

def objc_library(**attributes):
    native.objc_library(**attributes)
