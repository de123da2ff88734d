// The Python module fastseg._C. Importing it runs the registrations of the other files; it holds one string, what was
// built, so that what the library says of itself cannot drift from what it is.
#include <Python.h>

#define FASTSEG_TEXT_(...) #__VA_ARGS__
#define FASTSEG_TEXT(...) FASTSEG_TEXT_(__VA_ARGS__)

extern "C" PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (module != nullptr) PyModule_AddStringConstant(module, "BUILD", FASTSEG_TEXT(FASTSEG_BUILD));
  return module;
}
